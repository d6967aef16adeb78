"""AM-Softmax and CosFace: a margin on the target cosine itself."""

from dataclasses import dataclass

import torch

from ffc_ds.heads.margins.base import Margin


@dataclass(frozen=True)
class AdditiveCosine(Margin):
    """AM-Softmax, CosFace (arXiv 1801.05599, 1801.09414): target cosine t -> t - margin."""

    margin: float = 0.4

    def target(self, cosine, rows):
        return cosine - self.margin, torch.ones_like(cosine)
