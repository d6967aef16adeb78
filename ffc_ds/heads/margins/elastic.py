"""ElasticFace: a margin is drawn for each row."""

from dataclasses import dataclass

import numpy as np
import torch

from ffc_ds.data.randomness import mix
from ffc_ds.heads.margins.angle import add_angle
from ffc_ds.heads.margins.base import Margin, Rows

STREAM = 300


@dataclass(frozen=True)
class Elastic(Margin):
    """ElasticFace (arXiv 2109.09416, equations 5 to 8): margins from N(margin, std), one for each row of a batch.

    on_angle: cos(theta + margin), without a limit at pi, or else cos(theta) - margin. plus: row i gets margin idx[i] of
    those of the batch in ascending order, idx the rows by descending target cosine. That is the released code's; the
    paper gives the largest margin to the row that is furthest from its class, for which the inverse of idx is needed.
    """

    margin: float = 0.5
    std: float = 0.05
    on_angle: bool = True
    plus: bool = False

    def margins(self, cosine: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Those of the rows, [R], by their target cosines [R]."""
        drawn = self.margin + self.std * rows.draws
        return drawn.sort().values[cosine.argsort(descending=True, stable=True)] if self.plus else drawn

    def target(self, cosine, rows):
        margin = self.margins(cosine, rows)
        return add_angle(cosine, margin) if self.on_angle else (cosine - margin, torch.ones_like(cosine))

    def draw(self, seed, step, views, columns):
        """They follow from the place of a row in the whole step: not from ranks, not from accumulation."""
        places = np.arange(columns.start, columns.stop)
        bits = mix(seed, STREAM, step, np.arange(views)[:, None], places)
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
        return torch.special.ndtri(torch.from_numpy(uniform)).float().flatten().numpy()
