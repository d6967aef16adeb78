"""The learning rate as a function of the step: nothing to save, nothing to resume."""

import math

from ffc_ds.config.settings import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0) in a run of `steps`."""
    progress = step / steps
    if progress < optim.warmup:
        return optim.lr * (step + 1) / (optim.warmup * steps + 1)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * (progress - optim.warmup) / (1 - optim.warmup)))
    if optim.schedule == "steps":
        return optim.lr * 0.1 ** sum(progress >= milestone for milestone in optim.milestones)
    return optim.lr
