"""fp32 -> bf16, up or down at random in proportion to the distance, so that small updates count on average.

16 random bits are added below the last one that is kept, and the rest is cut off. Those of a number are the word of its
row xor the word of its column: uniform, and any two of them independent, so that sums scatter as if each were drawn by
itself, which would take longer than all products with the weights.
"""

import torch
from torch import Tensor

from ffc_ds.data.randomness import mix
from ffc_ds.heads.random_bits import random_bits


class StochasticRounding:
    """The words for rows of `dim` numbers of several tensors, which are named."""

    def __init__(self, names: tuple[str, ...], dim: int, device: torch.device):
        self._names, self._dim, self._device = names, dim, device

    def begin(self, seed: int, step: int) -> None:
        """From here on the words are those of this step."""
        self._keys = {name: int(mix(seed, step, place)) >> 1 for place, name in enumerate(self._names)}
        columns = torch.arange(self._dim, device=self._device)
        self._columns = {name: _word(columns, key) for name, key in self._keys.items()}

    def words(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For these rows (int64 [b], of all ranks) of the tensor `name`: int32 [b, 1] of rows and [dim] of columns,
        16 bits each."""
        return _word(rows, ~self._keys[name])[:, None], self._columns[name]


def _word(numbers: Tensor, key: int) -> Tensor:
    return (random_bits(numbers, key) >> 47).int()
