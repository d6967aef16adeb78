"""The exponential average of a run's weights: a better net than the last step's, for nothing (Polyak averaging)."""

import torch
from torch import nn

from ffc_ds.training.follower import Follower


class WeightAverage(Follower):
    """W <- d * W + (1 - d) * P after each step that was applied, d = min(decay, (1 + step) / (10 + step)).

    d rises as in TensorFlow's ExponentialMovingAverage, so that a short run does not average its first weights in.

    The buffers are averaged by the same d: the statistics of batch normalisation then lag as far as the weights do
    whose activations they describe, and the mean of the ranks' averages is the average of the ranks' means.
    Re-estimating them instead would take a pass over training images before each verification.
    """

    name = "averaged"

    def __init__(self, forward, module: nn.Module, probe: nn.Module, decay: float):
        super().__init__(forward, module, probe)
        self.decay = decay
        module.eval()
        buffers = list(zip(module.buffers(), probe.buffers(), strict=True))
        self._statistics = [pair for pair in buffers if pair[0].is_floating_point()]
        self._counts = [pair for pair in buffers if not pair[0].is_floating_point()]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        self._move(share)
        if self._statistics:
            torch._foreach_lerp_(*map(list, zip(*self._statistics, strict=True)), share)
        if self._counts:
            torch._foreach_copy_(*map(list, zip(*self._counts, strict=True)))
