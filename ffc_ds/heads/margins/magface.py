"""MagFace: longer embeddings get a larger margin, and are rewarded for their length."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ffc_ds.heads.margins.angle import add_angle
from ffc_ds.heads.margins.base import Margin, sines


@dataclass(frozen=True)
class MagFace(Margin):
    """MagFace (arXiv 2103.06627, equations 3 to 6): target cos(theta) -> cos(theta + m(a)), a the length of the
    embedding, clipped to `bounds`, and m(a) linear from the first to the second of `margins`.

    The loss has `lambda_g` times the mean of a / u_a^2 + 1 / a more; both act on the lengths too.
    form: "easy" has the margin only where cos(theta) > 0; "guarded" beyond theta = pi - m goes on with
    cos(theta) - m sin(m); "cosine" has cos(theta) - m(a).
    """

    bounds: tuple[float, float] = (10.0, 110.0)
    margins: tuple[float, float] = (0.45, 0.8)
    lambda_g: float = 35.0
    form: Literal["easy", "guarded", "cosine"] = "easy"
    reads_norms = trains_norms = True

    def target(self, cosine, rows):
        m = self._margin(rows.norms)
        if self.form == "cosine":
            return cosine - m, torch.ones_like(cosine)
        value, slope = add_angle(cosine, m)
        moved, beyond = self._moved(cosine, m)
        value = torch.where(moved, value, cosine if self.form == "easy" else beyond)
        return value, torch.where(moved, slope, 1.0)

    def by_norm(self, cosine, rows):
        m = self._margin(rows.norms)
        if self.form == "cosine":
            by_margin = -torch.ones_like(cosine)
        else:
            moved, _ = self._moved(cosine, m)
            by_margin = -(sines(cosine)[0] * m.cos() + cosine * m.sin())
            other = torch.zeros_like(m) if self.form == "easy" else -(m.sin() + m * m.cos())
            by_margin = torch.where(moved, by_margin, other)
        return by_margin * self._steepness * self._inside(rows.norms)

    def regulariser(self, norms):
        a, longest = norms.clamp(*self.bounds), self.bounds[1]
        value, slope = a / longest**2 + 1 / a, 1 / longest**2 - 1 / (a * a)
        return self.lambda_g * value, self.lambda_g * slope * self._inside(norms)

    @property
    def _steepness(self):
        return (self.margins[1] - self.margins[0]) / (self.bounds[1] - self.bounds[0])

    def _margin(self, norms):
        return (norms.clamp(*self.bounds) - self.bounds[0]) * self._steepness + self.margins[0]

    def _inside(self, norms):
        return (norms >= self.bounds[0]) & (norms <= self.bounds[1])

    def _moved(self, cosine, m):
        """Where the margin is on the angle, and the value elsewhere if guarded."""
        if self.form == "easy":
            return cosine > 0, None
        return cosine > (math.pi - m).cos(), cosine - m * m.sin()
