"""ArcFace and its combination: margins on the angle of the target class."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ffc_ds.heads.margins.base import Margin, sines


def add_angle(cosine: Tensor, margin: float | Tensor) -> tuple[Tensor, Tensor]:
    """cos(theta + margin) of cos(theta), and its slope by the cosine; `margin` a number, or one for each."""
    if isinstance(margin, Tensor):
        cos_m, sin_m = margin.cos(), margin.sin()
    else:
        cos_m, sin_m = math.cos(margin), math.sin(margin)
    sine, divisor = sines(cosine)
    return cosine * cos_m - sine * sin_m, cos_m + sin_m * cosine / divisor


@dataclass(frozen=True)
class AdditiveAngle(Margin):
    """ArcFace (arXiv 1801.07698, equation 3): target cosine cos(theta) -> cos(theta + margin).

    Beyond theta = pi - margin that would rise again; there `guard` continues with t - margin * sin(margin), falling.
    `straight_through` is the released code's gradient: as if there were no margin.
    """

    margin: float = 0.5
    guard: bool = True
    straight_through: bool = False

    def target(self, cosine, rows):
        value, slope = add_angle(cosine, self.margin)
        if self.guard:
            beyond = cosine < -math.cos(self.margin)
            value = torch.where(beyond, cosine - self.margin * math.sin(self.margin), value)
            slope = torch.where(beyond, torch.ones_like(slope), slope)
        return value, torch.ones_like(slope) if self.straight_through else slope


@dataclass(frozen=True)
class Combined(Margin):
    """ArcFace's combination (arXiv 1801.07698, equation 4): cos(theta) -> cos(m1 theta + m2) - m3.

    Beyond m1 theta + m2 = pi that would rise again; there `guard` goes on with slope 1. `straight_through` as above.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2
    guard: bool = True
    straight_through: bool = False

    def target(self, cosine, rows):
        sine, divisor = sines(cosine)
        angle = self.m1 * torch.atan2(sine, cosine) + self.m2
        value, slope = angle.cos(), self.m1 * angle.sin() / divisor
        if self.guard:
            turn = (math.pi - self.m2) / self.m1
            beyond = cosine < (math.cos(turn) if turn < math.pi else -math.inf)
            value = torch.where(beyond, cosine - math.cos(turn) - 1, value)
            slope = torch.where(beyond, torch.ones_like(slope), slope)
        return value - self.m3, torch.ones_like(slope) if self.straight_through else slope
