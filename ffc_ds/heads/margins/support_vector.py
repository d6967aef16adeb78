"""SV-AM-Softmax: AM-Softmax that pushes hard negatives."""

from dataclasses import dataclass

import torch

from ffc_ds.heads.margins.base import Margin


@dataclass(frozen=True)
class SupportVector(Margin):
    """SV-AM-Softmax (arXiv 1812.11317, equation 9): AM on targets above the margin; hard negatives are pushed.

    A negative cosine c with c > t - margin becomes mask * c + mask - 1.
    """

    margin: float = 0.4
    mask: float = 1.2
    changes_negatives = reads_target = True
    bytes_a_cell = 5

    def target(self, cosine, rows):
        return torch.where(cosine > self.margin, cosine - self.margin, cosine), torch.ones_like(cosine)

    def negatives(self, cosine, rows):
        hard = cosine > (rows.target - self.margin)[:, None]
        slope = torch.where(hard, self.mask, 1.0)
        return cosine.mul_(slope).add_(hard, alpha=self.mask - 1), slope
