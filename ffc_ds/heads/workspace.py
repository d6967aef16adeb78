"""Memory that every block and every step uses again."""

import math

import torch
from torch import Tensor


class Workspace:
    """Named scratch tensors. On a CPU fresh memory costs a page fault each 4 KiB, which can outweigh the arithmetic."""

    def __init__(self, device: torch.device):
        self.device = device
        self._memory = {}

    def take(self, name, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of any content, valid until the next `take` of the same name and type."""
        length = math.prod(shape)
        memory = self._memory.get((name, dtype))
        if memory is None or len(memory) < length:
            self._memory[name, dtype] = memory = None  # before there is a larger one
            memory = self._memory[name, dtype] = torch.empty(length, dtype=dtype, device=self.device)
        return memory[:length].view(shape)

    def rows(self, name, source: Tensor, rows: Tensor) -> Tensor:
        """Copy of the `rows` int64 [n] of `source` [m, dim]."""
        out = self.take(name, (len(rows), source.shape[1]), source.dtype)
        return torch.index_select(source, 0, rows, out=out)
