"""Weights of InsightFace's `iresnet`: the backbone.pth that its arcface_torch training writes, and files that hold one.

The names of its tensors say what net it is, whatever stands in front of them: DistributedDataParallel, torch.compile
and the classes that people wrap a backbone in each add a prefix.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffc_ds.errors import UserError
from ffc_ds.models import build_backbone
from ffc_ds.models.iresnet import BLOCKS, IResNet
from ffc_ds.models.weight_files import listed, read_states

LANDMARK = "layer1.0.conv1.weight"
STRIDE = 16  # of the net, pixels
UNUSED = ".num_batches_tracked"  # old files have none, and no net of ours looks at them


def load_insightface(path: str | Path, net: str | None = None) -> tuple[IResNet, str]:
    """An iresnet in evaluation mode with the weights of a file, in fp32, and what its names begin with there.

    Depth, width, size of the embedding and of the images are told by the weights. net: which one, by the beginning of
    its names, if there are several. The file is read without running code from it.

    Raises UserError if it is no file of weights, if it holds none of an iresnet or several, or if a tensor is missing,
    unexpected, of another shape or not finite, with the names.
    """
    prefix, weights = _choose(path, net)
    model = build_backbone("iresnet50", **_architecture(weights))
    expected = model.state_dict()
    missing = [name for name in expected.keys() - weights.keys() if not name.endswith(UNUSED)]
    unlike = [
        f"{name} is {list(weights[name].shape)} there, {list(value.shape)} in such a net"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    numbers = {name: value for name, value in weights.items() if not name.endswith(UNUSED)}
    no_floats = [f"{name} holds {value.dtype}" for name, value in numbers.items() if not value.is_floating_point()]
    broken = [name for name, value in numbers.items() if not torch.isfinite(value.float()).all()]
    complaints = (
        listed("missing", sorted(missing))
        + listed("unexpected", sorted(weights.keys() - expected.keys()))
        + listed("of another shape", unlike)
        + listed("of another kind", no_floats)
        + listed("not finite", broken)
    )
    if complaints:
        raise UserError(f"{path} is no {iresnet_name(model)} of InsightFace:{complaints}")
    model.load_state_dict(expected | weights)
    return model.eval(), prefix


def iresnet_name(model: IResNet) -> str:
    """Its name among the backbones, if it has one."""
    depth = model.config.depth
    return f"iresnet{depth}" if isinstance(depth, int) else f"iresnet with stages of {depth} blocks"


def _choose(path: str | Path, net: str | None) -> tuple[str, dict[str, Tensor]]:
    """What the names of the one iresnet of a file begin with, and its tensors."""
    states = read_states(Path(path))
    found = {}
    for where, state in states.items():
        prefixes = [name.removesuffix(LANDMARK) for name in state if name.endswith(LANDMARK)]
        for prefix in prefixes:
            others = tuple(other for other in prefixes if other.startswith(prefix) and other != prefix)
            found[where + prefix] = {
                name.removeprefix(prefix): value
                for name, value in state.items()
                if name.startswith(prefix) and not name.startswith(others)
            }
    if not found:
        names = [where + name for where, state in states.items() for name in state]
        raise UserError(
            f"{path} is no iresnet of InsightFace: none of its {len(names)} tensors is called {LANDMARK}"
            + listed("it has", names)
        )
    chosen = {prefix: weights for prefix, weights in found.items() if net in (None, prefix)}
    if len(chosen) != 1:
        raise UserError(
            f"{path} holds the nets {', '.join(map(repr, found))}: choose one with --net of export.py "
            "from-insightface, which writes a folder that model.weights takes"
        )
    return next(iter(chosen.items()))


def _architecture(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Settings of the backbone that has such weights."""
    blocks = [
        len({name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")}) or 1 for stage in range(1, 5)
    ]
    settings: dict[str, Any] = {"depth": next((depth for depth, each in BLOCKS.items() if each == blocks), blocks)}
    stem, last, fc = (weights.get(name) for name in ("conv1.weight", "bn2.weight", "fc.weight"))
    if stem is not None and stem.dim() == 4:
        settings["width"] = len(stem) / 64
    if fc is not None and last is not None and (fc.dim(), last.dim()) == (2, 1):
        settings["embedding_size"] = len(fc)
        settings["image_size"] = STRIDE * math.isqrt(fc.shape[1] // len(last))
    return settings
