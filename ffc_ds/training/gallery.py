"""The gallery net of FFC: a second net that follows the probe net by an exponential moving average."""

import torch
from torch import Tensor, nn

from ffc_ds.training.follower import Follower


class Gallery(Follower):
    """G <- m * G + (1 - m) * P over parameters (arXiv 2105.10375, equation 2); buffers are G's own.

    Batch normalisation uses the statistics of the gallery's own batch, as the released code does.
    """

    name = "gallery"

    def __init__(self, forward, module: nn.Module, probe: nn.Module, momentum: float):
        super().__init__(forward, module, probe)
        self.momentum = momentum
        module.train()

    def follow(self) -> None:
        """One step of the average, before the step's passes."""
        self._move(1 - self.momentum)
        self.refresh()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[n, dim] for the net's input [n, 3, S, S], without gradient."""
        return self.forward(images).embeddings
