"""CurricularFace: hard negatives count more the further training is."""

from dataclasses import dataclass
from typing import ClassVar

from ffc_ds.heads.margins.angle import AdditiveAngle, add_angle
from ffc_ds.heads.margins.base import Margin

MOMENTUM = 0.01  # of the mean target cosine


@dataclass(frozen=True)
class Curricular(Margin):
    """CurricularFace (arXiv 2004.00288, equations 8 to 10): ArcFace's target; hard negatives c -> c (t + c).

    Hard is c > cos(theta_y + margin), whatever the target does beyond theta_y = pi - margin. t follows the mean target
    cosine of the global batch: t <- 0.01 mean + 0.99 t, before use and without gradient.
    """

    margin: float = 0.5
    changes_negatives = reads_target = True
    bytes_a_cell = 9
    state: ClassVar[dict[str, float]] = {"t": 0.0}

    def target(self, cosine, rows):
        return AdditiveAngle(self.margin).target(cosine, rows)

    def negatives(self, cosine, rows):
        easy = cosine <= add_angle(rows.target, self.margin)[0][:, None]
        factor = (cosine + rows.state.to(cosine.dtype)).masked_fill_(easy, 1.0)
        slope = cosine.masked_fill(easy, 0.0).add_(factor)
        return cosine.mul_(factor), slope

    def observed(self, rows):
        return rows.target

    def follow(self, state, observed):
        return state.lerp(observed.double().clamp(-1, 1).mean()[None], MOMENTUM)
