"""The features of the pool's slots: this rank's part, written in place, with every write reversible."""

import numpy as np
import torch

from ffc_ds.distributed import rank, shard_bounds, to_device, world_size
from ffc_ds.pool.index import Taken


class PoolStorage:
    """`rows` unit features of `dim` numbers for each of this rank's slots: `features` [rows, own slots, dim].

    Slots are partitioned contiguously (`shard_bounds`); `start` and `end` are this rank's slots.
    """

    def __init__(self, capacity: int, rows: int, dim: int, device: torch.device, dtype: torch.dtype = torch.float32):
        self.capacity, self.rows, self.dim = capacity, rows, dim
        self.start, self.end = shard_bounds(capacity, rank(), world_size())
        self.features = torch.zeros(rows, self.end - self.start, dim, device=device, dtype=dtype)
        self._undo = []

    def write(self, taken: Taken, features: torch.Tensor) -> None:
        """Put gathered gallery features [n, dim] where the index says; of several for one row the last one stays."""
        mine = np.flatnonzero(taken.last & (taken.slots >= self.start) & (taken.slots < self.end))
        if not mine.size:
            return
        device = self.features.device
        where = (to_device(taken.rows[mine], device), to_device(taken.slots[mine] - self.start, device))
        self._undo.append((where, self.features[where]))
        self.features[where] = features[to_device(mine, device)].to(self.features.dtype)

    def mark(self) -> int:
        """A point to return to."""
        return len(self._undo)

    def undo(self, mark: int) -> None:
        """Take back every write since `mark`, bit for bit."""
        while len(self._undo) > mark:
            where, before = self._undo.pop()
            self.features[where] = before

    def settle(self) -> None:
        """All writes so far are final."""
        self._undo.clear()
