"""Margins on the cosine of the target class: values and slopes, written out so that no autograd graph is kept."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ffc_ds.config.settings import HeadConfig


@dataclass(frozen=True)
class AdditiveCosine:
    """AM-Softmax, CosFace (arXiv 1801.05599, 1801.09414): target cosine t -> t - margin."""

    margin: float = 0.4
    changes_negatives = False

    def target(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Target cosines of any shape -> (value in the logits, its slope)."""
        return cosine - self.margin, torch.ones_like(cosine)


@dataclass(frozen=True)
class AdditiveAngle:
    """ArcFace (arXiv 1801.07698, equation 3): target cosine cos(theta) -> cos(theta + margin).

    Beyond theta = pi - margin that would rise again; there `guard` continues with t - margin * sin(margin), falling.
    The sine is kept off zero, where the slope is infinite (both views of an identity may be one picture).
    `straight_through` is the released code's gradient: as if there were no margin.
    """

    margin: float = 0.5
    guard: bool = True
    straight_through: bool = False
    changes_negatives = False

    def target(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Target cosines of any shape -> (value in the logits, its slope)."""
        cos_m, sin_m = math.cos(self.margin), math.sin(self.margin)
        sine = (1 - cosine * cosine).clamp_min(1e-7).sqrt()
        value = cosine * cos_m - sine * sin_m
        slope = cos_m + sin_m * cosine / sine
        if self.guard:
            beyond = cosine < -cos_m
            value = torch.where(beyond, cosine - self.margin * sin_m, value)
            slope = torch.where(beyond, torch.ones_like(slope), slope)
        return value, torch.ones_like(slope) if self.straight_through else slope


@dataclass(frozen=True)
class Combined:
    """ArcFace's combination (arXiv 1801.07698, equation 4): cos(theta) -> cos(m1 theta + m2) - m3.

    Beyond m1 theta + m2 = pi that would rise again; there `guard` goes on with slope 1. `straight_through` as above.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2
    guard: bool = True
    straight_through: bool = False
    changes_negatives = False

    def target(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Target cosines of any shape -> (value in the logits, its slope)."""
        sine = (1 - cosine * cosine).clamp_min(1e-7).sqrt()
        angle = self.m1 * torch.atan2(sine, cosine) + self.m2
        value, slope = angle.cos(), self.m1 * angle.sin() / sine
        if self.guard:
            turn = (math.pi - self.m2) / self.m1
            beyond = cosine < (math.cos(turn) if turn < math.pi else -math.inf)
            value = torch.where(beyond, cosine - math.cos(turn) - 1, value)
            slope = torch.where(beyond, torch.ones_like(slope), slope)
        return value - self.m3, torch.ones_like(slope) if self.straight_through else slope


@dataclass(frozen=True)
class SupportVector:
    """SV-AM-Softmax (arXiv 1812.11317, equation 9): AM on targets above the margin; hard negatives are pushed.

    A negative cosine c with c > t - margin becomes mask * c + mask - 1.
    """

    margin: float = 0.4
    mask: float = 1.2
    changes_negatives = True

    def target(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Target cosines of any shape -> (value in the logits, its slope)."""
        return torch.where(cosine > self.margin, cosine - self.margin, cosine), torch.ones_like(cosine)

    def negatives(self, cosine: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Negative cosines fp32 [R, b], overwritten, beside their targets [R] -> (value in the logits, its slope)."""
        hard = cosine > (target - self.margin)[:, None]
        slope = torch.where(hard, self.mask, 1.0)
        return cosine.mul_(slope).add_(hard, alpha=self.mask - 1), slope


def make_margin(config: HeadConfig):
    """The margin that the settings ask for, with its published strength unless they give one."""
    strength = {} if config.margin_strength is None else {"margin": config.margin_strength}
    gradient = {"guard": config.arc_guard, "straight_through": config.straight_through}
    if config.margin == "combined":
        m1, m2, m3 = config.combined
        if config.m3_alone and m3 > 0:
            m1, m2 = 1.0, 0.0
        return Combined(m1, m2, m3, **gradient)
    if config.margin == "arc":
        return AdditiveAngle(**strength, **gradient)
    return {"am": AdditiveCosine, "sv": SupportVector}[config.margin](**strength)
