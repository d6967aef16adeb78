"""AdaFace: the margin follows the length of the embedding, which stands for the quality of the image."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ffc_ds.heads.margins.base import Margin

EPSILON = 1e-3
SHORTEST, LONGEST = 1e-3, 100.0


@dataclass(frozen=True)
class AdaFace(Margin):
    """AdaFace (arXiv 2204.00964, equations 9 to 15): target cos(theta) -> cos(theta - m k) - (m + m k).

    k = clip(h (|x| - mean) / std, -1, 1) without gradient. Mean and unbiased deviation are those of the global batch,
    followed with weight `t_alpha` before use. One row has no deviation: the old one stays, where the released code
    goes on with NaN. All cosines are kept 1e-3 off 1 and -1, and the target's angle off 0 and pi, with no gradient
    beyond.
    """

    margin: float = 0.4
    h: float = 0.333
    t_alpha: float = 0.01
    changes_negatives = reads_norms = True
    bytes_a_cell = 4
    state: ClassVar[dict[str, float]] = {"batch_mean": 20.0, "batch_std": 100.0}

    def target(self, cosine, rows):
        mean, std = rows.state.to(cosine.dtype)
        k = ((_clipped(rows.norms) - mean) / (std + EPSILON) * self.h).clamp(-1, 1)
        inside = cosine.abs() <= 1 - EPSILON
        clamped = cosine.clamp(EPSILON - 1, 1 - EPSILON)
        wanted = clamped.acos() - self.margin * k
        angle = wanted.clamp(EPSILON, math.pi - EPSILON)
        slope = angle.sin() / (1 - clamped * clamped).sqrt() * (inside & (wanted == angle))
        return angle.cos() - (self.margin + self.margin * k), slope

    def negatives(self, cosine, rows):
        slope = cosine.abs().le_(1 - EPSILON)
        return cosine.clamp_(EPSILON - 1, 1 - EPSILON), slope

    def observed(self, rows):
        return _clipped(rows.norms)

    def follow(self, state, observed):
        lengths = observed.double()
        std = lengths.std() if len(lengths) > 1 else state[1]
        return state.lerp(torch.stack([lengths.mean(), std]), self.t_alpha)


def _clipped(norms):
    return norms.clamp(SHORTEST, LONGEST)
