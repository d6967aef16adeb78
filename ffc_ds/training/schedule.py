"""The learning rate as a function of the step: nothing to save, nothing to resume."""

import math
from dataclasses import replace

from ffc_ds.config.settings import OptimConfig


def for_batch(optim: OptimConfig, batch_size: int) -> OptimConfig:
    """The settings with the learning rate for batches of `batch_size` images: in proportion to it, where they say which
    batch they are meant for (linear scaling, Goyal et al. 2017, arXiv 1706.02677)."""
    return replace(optim, lr=optim.lr * batch_size / optim.lr_batch, lr_batch=0) if optim.lr_batch else optim


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0) in a run of `steps`."""
    progress = step / steps
    if progress < optim.warmup:
        return optim.lr * (step + 1) / (optim.warmup * steps + 1)
    if optim.schedule == "steps":
        return optim.lr * 0.1 ** sum(progress >= milestone for milestone in optim.milestones)
    left = 1 - (progress - optim.warmup) / (1 - optim.warmup)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 - math.cos(math.pi * left))
    return optim.lr * left**optim.power if optim.schedule == "poly" else optim.lr
