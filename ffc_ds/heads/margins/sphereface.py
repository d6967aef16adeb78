"""SphereFace and SphereFace-R: the angle of the target, or that of the others, is multiplied."""

import math
from dataclasses import dataclass

import torch

from ffc_ds.heads.margins.base import Margin

EDGE = 1e-5  # cosines stay so far off 1 and -1


def angles(cosine):
    """Of cosines, overwritten."""
    return cosine.clamp_(EDGE - 1, 1 - EDGE).acos_()


def phi(cosine, m):
    """(-1)^k cos(m theta) - 2 k with k = floor(m theta / pi), falling from 0 to pi."""
    angle = angles(cosine.clone()).mul_(m)
    k = (angle / math.pi).floor()
    return (1 - 2 * torch.remainder(k, 2)) * angle.cos() - 2 * k


@dataclass(frozen=True)
class SphereFace(Margin):
    """SphereFace (arXiv 1704.08063, equation 7), its gradient that of the cosine, as arXiv 2109.05565 found better.

    Target: (-1)^k cos(m theta) - 2 k. Class weights are unit vectors, set so rather than divided by their lengths.
    """

    margin: float = 1.7
    unit_rows = True

    def target(self, cosine, rows):
        return phi(cosine, self.margin), torch.ones_like(cosine)


@dataclass(frozen=True)
class SphereFaceR(Margin):
    """SphereFace-R with a fixed scale (arXiv 2109.05565, table 1), the gradient that of the cosine.

    version 2: the target keeps cos(theta), other classes get cos(theta / m); version 1: the target gets
    cos(min(m theta, pi)); version 0: that of SphereFace. The loss is `loss_weight` / scale times the cross-entropy.
    """

    margin: float = 1.4
    loss_weight: float = 50.0
    version: int = 2
    unit_rows = True

    @property
    def changes_negatives(self):
        return self.version == 2

    def target(self, cosine, rows):
        value = cosine
        if self.version == 1:
            value = angles(cosine.clone()).mul_(self.margin).clamp_(max=math.pi).cos_()
        elif self.version == 0:
            value = phi(cosine, self.margin)
        return value, torch.ones_like(cosine)

    def negatives(self, cosine, rows):
        return angles(cosine).div_(self.margin).cos_(), None

    def loss_factor(self, scale):
        return self.loss_weight / scale
