"""The most similar of many vectors, exactly, with most pairs ruled out by few numbers.

For an orthogonal projection P to w - 1 dimensions, x.y = Px.Py + (x - Px).(y - Py) <= Px.Py + |x - Px| |y - Py|: the
product of [Px, |x - Px|] and [Py, |y - Py|], vectors of w numbers. Where that stays below the least cosine that is
asked for, the pair is done with; all others are compared in full.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ffc_ds.cleaning.vectors import shared_array
from ffc_ds.distributed import all_reduce, barrier, broadcast_object, rank, shard_bounds, world_size
from ffc_ds.progress import progress

BLOCK = 1024  # of queries, and of keys, at a time: their products stay in a cache
SLACK = 1e-5  # what rounding may take from a bound
SAMPLE = 8192  # vectors
LOOK = 64  # to look closely at a block costs at least as much as so many numbers more of each of its vectors
WIDTHS = (16, 32, 64, 128, 256)


class Vectors(NamedTuple):
    """Unit vectors in some order."""

    unit: Callable[[np.ndarray], Tensor]
    """float32 [k, D] of those with the numbers int64 [k]."""
    numbers: np.ndarray
    """int64 [n]: the order."""

    def part(self, start: int, stop: int) -> Tensor:
        return self.unit(self.numbers[start:stop])

    def sample(self, most: int) -> Tensor:
        """At most so many of them, evenly from the first to the last, float32."""
        return self.unit(self.numbers[:: -(-len(self.numbers) // most)])


class Found(NamedTuple):
    """For each of Q queries the most similar key."""

    cosine: np.ndarray
    """float32 [Q]; -inf where none is similar enough."""
    key: np.ndarray
    """int64 [Q], its number; -1 where there is none."""


@dataclass(frozen=True)
class Search:
    """A search for the key with the largest cosine, `least` or more, for each query."""

    queries: Vectors
    keys: Vectors
    least: float
    barred: np.ndarray | None = None
    """int64 [Q], the place of the key that a query may not find."""
    earlier: bool = False
    """Queries and keys are the same, and each may find only those before it."""
    block: int = BLOCK
    """Queries, and keys, at a time."""

    def run(self, scratch: Path, device: torch.device, desc: str) -> Found:
        """Search, on all ranks together.

        scratch: a file to make, of 4 w bytes a key. desc: what it is called meanwhile.
        """
        count, ends = len(self.queries.numbers), len(self.keys.numbers)
        if not count:
            return Found(np.empty(0, np.float32), np.empty(0, np.int64))
        basis = broadcast_object(_basis(self) if rank() == 0 else None)
        projected = _project_all(self.keys, basis, scratch, self.block)
        cosine, place = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
        starts = range(rank() * self.block, count, world_size() * self.block)
        room = torch.empty(self.block**2, device=device)  # used again and again, since fresh memory costs page faults
        own_pairs = sum(self.block * (min(start + self.block, ends) if self.earlier else ends) for start in starts)
        with progress(desc=desc, unit="pairs", total=own_pairs, shown=rank() == 0) as bar:
            for start in starts:
                stop = min(start + self.block, count)
                vectors = _project(self.queries.part(start, stop), basis).to(device)
                best = torch.full((stop - start,), -torch.inf, device=device)
                at = torch.full((stop - start,), -1, dtype=torch.int64, device=device)
                last = stop if self.earlier else ends
                for first in range(0, last, self.block):
                    part = projected[first : min(first + self.block, last)].to(device)
                    bounds = room[: len(vectors) * len(part)].view(len(vectors), len(part))
                    torch.mm(vectors, part.T, out=bounds)
                    if first == start and self.earlier:
                        bounds.masked_fill_(torch.ones_like(bounds, dtype=torch.bool).triu(), -torch.inf)
                    if bounds.amax() >= self.least - SLACK:
                        self._compare(bounds, start, first, best, at)
                    bar.update(self.block * bounds.shape[1])
                cosine[start:stop], place[start:stop] = best.cpu(), at.cpu()
        cosine, place = (all_reduce(each.to(device)).cpu().numpy() for each in (cosine, place))
        return Found(cosine, np.where(place < 0, -1, self.keys.numbers[place]))

    def _compare(self, bounds: Tensor, start: int, first: int, best: Tensor, at: Tensor) -> None:
        """Compare in full what the bounds of a block leave, and note in `best` and `at` of its queries what is better.

        bounds: float32 [q, k], of the queries from place `start` on and the keys from place `first` on.
        """
        hit = bounds >= self.least - SLACK
        rows, columns = hit.any(1).nonzero()[:, 0], hit.any(0).nonzero()[:, 0]
        queries = self.queries.unit(self.queries.numbers[start + rows.cpu().numpy()]).to(bounds.device)
        keys = self.keys.unit(self.keys.numbers[first + columns.cpu().numpy()]).to(bounds.device)
        cosines, places = queries @ keys.T, first + columns
        if self.earlier:
            cosines.masked_fill_(places >= start + rows[:, None], -torch.inf)
        if self.barred is not None:
            barred = torch.from_numpy(self.barred[start + rows.cpu().numpy()]).to(bounds.device)
            cosines.masked_fill_(places == barred[:, None], -torch.inf)
        found, where = cosines.max(1)
        better = (found >= self.least) & (found > best[rows])
        best[rows[better]], at[rows[better]] = found[better], places[where[better]]


def _basis(search: Search) -> Tensor | None:
    """The projection with which a search is cheapest, float32 [D, w - 1]; None for all D numbers."""
    keys, least, block = search.keys, search.least, search.block
    if len(keys.numbers) <= block:
        return None
    sample = keys.sample(SAMPLE).double()
    dim = sample.shape[1]
    directions = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1).float()
    others, sample = search.queries.sample(block), keys.sample(block)
    unlike = others @ sample.T < least
    costs = {dim: float(dim)}
    for width in (each for each in WIDTHS if each < dim):
        basis = directions[:, : width - 1]
        open_pairs = (_project(others, basis) @ _project(sample, basis).T >= least) & unlike
        share = open_pairs.float().mean().item()
        looked_at = 1 - (1 - share) ** block  # of the queries, and of the keys, of a block
        costs[width] = width + dim * looked_at**2 + LOOK * (1 - (1 - share) ** block**2)
    width = min(costs, key=costs.get)
    return None if width == dim else directions[:, : width - 1].contiguous()


def _project(vectors: Tensor, basis: Tensor | None) -> Tensor:
    if basis is None:
        return vectors
    inside = vectors @ basis
    rest = vectors - inside @ basis.T  # 1 - |inside|^2 would have few digits left where it is small
    return torch.cat([inside, rest.norm(dim=1, keepdim=True)], dim=1)


def _project_all(keys: Vectors, basis: Tensor | None, scratch: Path, block: int) -> Tensor:
    width = keys.part(0, 1).shape[1] if basis is None else basis.shape[1] + 1
    projected = shared_array(scratch, (len(keys.numbers), width), torch.float32)
    begin, end = shard_bounds(len(keys.numbers), rank(), world_size())
    for start in range(begin, end, block):
        stop = min(start + block, end)
        projected[start:stop] = _project(keys.part(start, stop), basis)
    barrier()
    return projected
