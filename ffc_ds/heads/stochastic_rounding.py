"""fp32 -> bf16, up or down at random in proportion to the distance, so that small updates count on average.

16 random bits are added below the last one that is kept, and the rest is cut off. Those of a number are the word of its
row xor the word of its column: uniform, and any two of them independent, so that sums scatter as if each were drawn by
itself, which would take longer than all products with the weights.
"""

import numpy as np
import torch
from torch import Tensor

from ffc_ds.data.randomness import mix
from ffc_ds.distributed import to_device
from ffc_ds.heads.random_bits import random_bits


class StochasticRounding:
    """The words for rows of `dim` numbers of so many tensors, in their order."""

    def __init__(self, tensors: int, dim: int, device: torch.device):
        self._tensors, self._dim, self._device = np.arange(tensors)[:, None], dim, device

    def begin(self, seed: int, step: int) -> None:
        """From here on the words are those of this step."""
        self._keys = to_device((mix(seed, step, self._tensors) >> np.uint64(1)).astype(np.int64), self._device)
        self._columns = _words(torch.arange(self._dim, device=self._device), self._keys)

    def words(self, rows: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """For these rows (int64 [b], of all ranks) of each tensor: int32 [b, 1] of rows and [dim] of columns, 16 bits
        each."""
        return tuple(zip(_words(rows, ~self._keys)[:, :, None], self._columns, strict=True))


def _words(numbers: Tensor, keys: Tensor) -> Tensor:
    """int32 [tensors, n] for int64 [n] and [tensors, 1]."""
    return (random_bits(numbers, keys) >> 47).int()
