"""A random share of the classes, drawn by arithmetic: the same for any number of ranks, and nothing to save."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffc_ds.heads.random_bits import random_bits


@dataclass(frozen=True)
class Sample:
    """`wanted` of `classes` classes, chosen by `key`.

    The classes stand in a circle, which is cut, at a place that depends on the key, into `wanted` strata of equal
    length, give or take one; each gives one class. So a class is drawn with probability wanted / classes, none twice,
    and with wanted = classes all are. Works on arrays of numpy and of torch, on any device.
    """

    classes: int
    wanted: int
    key: int

    @property
    def turn(self) -> int:
        return int(random_bits(np.array([-1]), self.key)[0] % self.classes)

    def members(self, strata: Tensor | np.ndarray):
        """The class that each stratum (int64 [n] of 0 .. wanted - 1) gives: int64 [n]."""
        first = strata * self.classes // self.wanted
        length = (strata + 1) * self.classes // self.wanted - first
        return (first + random_bits(strata, self.key) % length - self.turn) % self.classes

    def strata(self, members: np.ndarray) -> np.ndarray:
        """The stratum in which each class (int64 [n]) lies."""
        return (((members + self.turn) % self.classes + 1) * self.wanted - 1) // self.classes

    def between(self, start: int, end: int) -> tuple[int, int]:
        """The drawn ones of the classes start .. end - 1, ascending: first stratum and number (mod wanted)."""
        if start == end:
            return 0, 0
        borders = np.array([start, end - 1])
        strata = self.strata(borders)
        drawn = (self.members(strata) + self.turn) % self.classes
        places = (borders + self.turn) % self.classes
        first, last = int(strata[0] + (drawn[0] < places[0])), int(strata[1] - (drawn[1] > places[1]))
        wrapped = places[1] < places[0] or (end - start == self.classes and places[0] > 0)
        return first % self.wanted, last - first + 1 + (self.wanted if wrapped else 0)

    def rows(self, start: int, end: int, device: torch.device) -> tuple[Tensor, int]:
        """The drawn ones of the classes start .. end - 1, int64 [n] ascending, and the stratum of the first."""
        first, count = self.between(start, end)
        return self.members((first + torch.arange(count, device=device)) % self.wanted), first
