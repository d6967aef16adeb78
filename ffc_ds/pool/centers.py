"""The newest feature of every identity that has been seen, so that one that left the pool can come back with it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.distributed import all_reduce, rank, shard_bounds, to_device, world_size


class CenterStore:
    """A unit feature of `dim` numbers for each of this rank's identities: `features` fp16 [own identities, dim].

    Identities are partitioned contiguously (`shard_bounds`). Which have a feature, `seen`, is a bit for each of them in
    host memory, the same on all ranks.
    """

    def __init__(self, identities: int, dim: int, device: torch.device):
        self.identities = identities
        self.start, self.end = shard_bounds(identities, rank(), world_size())
        self.features = torch.zeros(self.end - self.start, dim, device=device, dtype=torch.float16)
        self.seen = np.zeros(-(-identities // 8), np.uint8)

    def known(self, identities: np.ndarray) -> np.ndarray:
        """Which of the identities int64 [n] have a feature: bool [n]."""
        return (self.seen[identities >> 3] >> (identities & 7) & 1).astype(bool)

    def recall(self, identities: np.ndarray) -> Tensor:
        """Their features, fp32 [n, dim], equal on all ranks, which must all call."""
        device = self.features.device
        found = torch.zeros(len(identities), self.features.shape[1], device=device)
        own = np.flatnonzero((identities >= self.start) & (identities < self.end))
        found[to_device(own, device)] = self.features[to_device(identities[own] - self.start, device)].float()
        return F.normalize(all_reduce(found), dim=1)

    def keep(self, identities: np.ndarray, features: Tensor) -> None:
        """Take in features [n, dim], equal on all ranks, of identities int64 [n]; the last one of an identity stays."""
        distinct, last = np.unique(identities[::-1], return_index=True)
        last = len(identities) - 1 - last
        own = np.flatnonzero((distinct >= self.start) & (distinct < self.end))
        device = self.features.device
        rows = features[to_device(last[own], device)].to(self.features.dtype)
        self.features.index_copy_(0, to_device(distinct[own] - self.start, device), rows)
        np.bitwise_or.at(self.seen, distinct >> 3, (1 << (distinct & 7)).astype(np.uint8))
