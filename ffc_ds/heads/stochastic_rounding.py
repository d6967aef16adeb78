"""fp32 -> bf16, up or down at random in proportion to the distance, so that small updates count on average.

16 random bits are added below the last one that is kept, and the rest is cut off. Those of a number are the word of its
row xor the word of its column: uniform, and any two of them independent, so that sums scatter as if each were drawn by
itself, which would take longer than all products with the weights.
"""

import torch
from torch import Tensor

from ffc_ds.data.randomness import mix
from ffc_ds.heads.random_bits import random_bits
from ffc_ds.heads.workspace import Workspace


class StochasticRounding:
    """For rows of `dim` numbers of several tensors, which are named by the words that they are given."""

    def __init__(self, names: tuple[str, ...], dim: int, workspace: Workspace):
        self._names, self._dim, self._workspace = names, dim, workspace

    def begin(self, seed: int, step: int) -> None:
        """From here on the bits are those of this step."""
        self._keys = {name: int(mix(seed, step, place)) >> 1 for place, name in enumerate(self._names)}
        columns = torch.arange(self._dim, device=self._workspace.device)
        self._words = {name: self._word(columns, key) for name, key in self._keys.items()}

    def __call__(self, name: str, value: Tensor, rows: Tensor) -> Tensor:
        """For fp32 `value` [b, dim] of the tensor `name`, of these rows (int64 [b], of all ranks): what bf16 can
        say, as fp32, valid until the next call."""
        bits = self._workspace.take("rounding", tuple(value.shape), torch.int32)
        torch.bitwise_xor(self._word(rows, ~self._keys[name])[:, None], self._words[name], out=bits)
        bits.add_(value.contiguous().view(torch.int32))
        return bits.bitwise_and_(-(1 << 16)).view(torch.float32)

    def _word(self, numbers: Tensor, key: int) -> Tensor:
        return (random_bits(numbers, key) >> 47).int()
