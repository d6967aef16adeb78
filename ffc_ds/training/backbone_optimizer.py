"""The optimizer of the backbone, which DeepSpeed gets unless its ds_config names one of its own."""

from collections.abc import Collection

import torch
from torch import nn

from ffc_ds.config.settings import Config

LR_FACTOR = "lr_factor"  # of a group of parameters


def parameter_groups(model: nn.Module, from_weights: Collection[str], lr_factor: float) -> list:
    """The parameters to train, apart where they learn at another rate; `step` gives each group its own."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if lr_factor == 1:
        return list(named.values())
    slow = [parameter for name, parameter in named.items() if name in from_weights]
    fast = [parameter for name, parameter in named.items() if name not in from_weights]
    groups = [{"params": fast, LR_FACTOR: 1.0}, {"params": slow, LR_FACTOR: lr_factor}]
    return [group for group in groups if group["params"]]


def backbone_optimizer(config: Config, parameters: list) -> torch.optim.Optimizer:
    """Fused: one pass over weights, gradient and state, where torch otherwise takes one for each operation."""
    chosen = config.optim
    if chosen.name == "adamw":
        return torch.optim.AdamW(parameters, lr=chosen.lr, weight_decay=chosen.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=chosen.lr,
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
        nesterov=chosen.momentum > 0,
        fused=True,
    )
