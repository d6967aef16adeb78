"""Margins on the cosine of the target class: values and slopes, written out so that no autograd graph is kept."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ffc_ds.errors import UserError


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
    """

    margin: float = 0.5
    guard: bool = True
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
        return value, slope


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
        """Negative cosines [R, b] beside their targets [R] -> (values in the logits, their slopes)."""
        hard = cosine > (target - self.margin)[:, None]
        slope = torch.where(hard, self.mask, 1.0).to(cosine.dtype)
        return slope * cosine + (slope - 1), slope


MARGINS = {"am": AdditiveCosine, "arc": AdditiveAngle, "sv": SupportVector}


def make_margin(name: str, margin: float | None = None, **settings):
    """The margin called `name` (one of MARGINS) with its published strength unless `margin` is given."""
    if name not in MARGINS:
        raise UserError(f"head.margin is {name!r}; it must be one of {', '.join(MARGINS)}.")
    if margin is not None:
        settings["margin"] = margin
    return MARGINS[name](**settings)
