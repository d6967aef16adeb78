"""What a margin is: pure functions, values and slopes written out so that no autograd graph is kept."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

SINE_FLOOR = 1e-4  # where a sine divides: at an angle of 0 slopes would be infinite (two views may be one picture)


@dataclass(frozen=True)
class Rows:
    """What a margin may look at of the R rows of a global micro-batch beside their cosines; equal on all ranks.

    target: cosines with the own class; norms: lengths of the embeddings; draws: standard normal; all [R] in the type of
    the cosines. state: float64 [len(margin.state)].
    """

    target: Tensor | None = None
    norms: Tensor | None = None
    draws: Tensor | None = None
    state: Tensor | None = None


class Margin(ABC):
    """How the cosines of a row become what the scale multiplies. What it reads of `Rows` is all that ranks exchange.

    changes_negatives: `negatives` is to be called; `bytes_a_cell`: of the memory that it takes for a cell.
    reads_target: it or the state needs `Rows.target`, before any other class is looked at.
    reads_norms, trains_norms: needs `Rows.norms`; the loss has a gradient by them.
    unit_rows: class weights stay unit vectors, made so after each update, and learn by the gradient as it comes: what
    points along a row is not taken out.
    state: names and first values of the numbers that it keeps from step to step.
    """

    changes_negatives = False
    bytes_a_cell = 0
    reads_target = False
    reads_norms = False
    trains_norms = False
    unit_rows = False
    state: ClassVar[dict[str, float]] = {}

    @abstractmethod
    def target(self, cosine: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Target cosines, [R] or of any shape that ends so -> (value in the logits, its slope by the cosine)."""

    def negatives(self, cosine: Tensor, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Cosines with other classes [R, b], overwritten -> (value in the logits, its slope; None: 1 everywhere)."""
        return cosine, None

    def observed(self, rows: Rows) -> Tensor:
        """What the state follows, [R]; nothing if there is none."""
        return torch.empty(0)

    def follow(self, state: Tensor, observed: Tensor) -> Tensor:
        """The state float64 [n] after a step with these `observed` rows; the step itself is worked out with it."""
        return state

    def by_norm(self, cosine: Tensor, rows: Rows) -> Tensor:
        """Slope [R] of `target` by the norm, for `trains_norms`."""
        return torch.zeros_like(cosine)

    def regulariser(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """What each row adds to the loss by its norm, and its slope, [R] each, for `trains_norms`."""
        return torch.zeros_like(norms), torch.zeros_like(norms)

    def draw(self, seed: int, step: int, views: int, columns: range) -> np.ndarray | None:
        """Standard normal float32 [views * len(columns)] for these columns of the views of a step, if it wants any."""
        return None

    def loss_factor(self, scale: float) -> float:
        """What the mean cross-entropy is multiplied by."""
        return 1.0


def sines(cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Sines of the angles, and the same to divide by."""
    sine = (1 - cosine * cosine).clamp_min_(0).sqrt_()
    return sine, sine.clamp_min(SINE_FLOOR)
