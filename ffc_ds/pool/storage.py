"""The features of the pool's slots: this rank's part, written in place, with every write reversible."""

import numpy as np
import torch

from ffc_ds.distributed import rank, shard_bounds, to_device, world_size


class PoolStorage:
    """`rows` unit features of `dim` numbers for each of this rank's slots: `features` [rows, own slots, dim].

    Slots are partitioned contiguously (`shard_bounds`); `start` and `end` are this rank's slots.
    """

    def __init__(self, capacity: int, rows: int, dim: int, device: torch.device, dtype: torch.dtype = torch.float32):
        self.capacity, self.rows, self.dim = capacity, rows, dim
        self.start, self.end = shard_bounds(capacity, rank(), world_size())
        self.features = torch.zeros(rows, self.end - self.start, dim, device=device, dtype=dtype)
        self._undo = []

    def own(self, slots: np.ndarray) -> np.ndarray:
        """Which of the slots int64 [n] are this rank's: bool [n]."""
        return (slots >= self.start) & (slots < self.end)

    def write(self, rows: np.ndarray, slots: np.ndarray, features: torch.Tensor) -> None:
        """Put features [n, dim] into distinct places: `rows` int64 [n] of `slots` int64 [n], all of this rank."""
        if not slots.size:
            return
        device = self.features.device
        where = (to_device(rows, device), to_device(slots - self.start, device))
        self._undo.append((where, self.features[where]))
        self.features[where] = features.to(self.features.dtype)

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
