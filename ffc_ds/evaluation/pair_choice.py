"""The choice of pairs for verification from labelled images that are held out."""

import bisect

import numpy as np

from ffc_ds.errors import UserError
from ffc_ds.evaluation.verification import even_sizes


def make_pairs(
    offsets: np.ndarray, images: np.ndarray, pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Choose verification pairs from a CSR identity index: identity i has the rows `images[offsets[i]:offsets[i + 1]]`.

    `offsets` is int64 [identities + 1], `images` int64 [offsets[-1]]. Half of the pairs are genuine, spread evenly over
    the identities with two images or more; half are impostors, spread evenly over the pairs of identities. A pair
    occurs again only when there are too few different ones. As in LFW, genuine and impostor pairs come in 20
    alternating blocks, so each of ten folds has both. The choice depends on the index and the seed alone.

    Returns `image_rows` (int64 [m], the rows to embed, unique and ascending), `left` and `right` (int64 [pairs],
    positions in `image_rows`) and `same` (bool [pairs]).
    Raises UserError if `pairs` is under 2, or if there are no two identities, or none with two images.
    """
    rng = np.random.default_rng(seed)
    counts = np.diff(offsets)
    present, repeated = np.flatnonzero(counts > 0), np.flatnonzero(counts > 1)
    if pairs < 2:
        raise UserError(f"verification pairs: {pairs} asked for, at least 2 are needed; ask for more")
    if len(present) < 2 or len(repeated) < 1:
        raise UserError(
            f"verification pairs need two identities or more, one of them with two images or more, but the held-out "
            f"data has {len(present)} identities, {len(repeated)} of them with two images: hold out more identities"
        )
    same = np.repeat(np.arange(20) % 2 == 0, even_sizes(pairs, 20))
    chosen = np.empty((2, pairs), dtype=np.int64)
    chosen[:, same] = _genuine(offsets[repeated], counts[repeated], same.sum(), rng)
    chosen[:, ~same] = _impostors(offsets[present], counts[present], pairs - same.sum(), rng)
    image_rows, positions = np.unique(images[chosen], return_inverse=True)
    left, right = positions.reshape(2, pairs)
    return image_rows, left, right, same


def _genuine(starts: np.ndarray, counts: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    identity, code = _spread(counts * (counts - 1) // 2, wanted, rng)
    return starts[identity] + np.stack(_unordered_pair(code, counts[identity]))


def _impostors(starts: np.ndarray, counts: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    identity_pairs = len(counts) * (len(counts) - 1) // 2
    drawn = rng.choice(identity_pairs, min(wanted, identity_pairs), replace=False)
    a, b = _unordered_pair(drawn, len(counts))
    pair, code = _spread(counts[a] * counts[b], wanted, rng)
    a, b = a[pair], b[pair]
    return np.stack([starts[a] + code // counts[b], starts[b] + code % counts[b]])


def _unordered_pair(code: np.ndarray, n: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """The pair of different numbers below n behind a code in [0, n (n - 1) / 2): the circle method of tournaments."""
    circle = n - (n + 1) % 2
    round_, a = code // circle + n % 2, code % circle
    return a, np.where(round_ == 0, n - 1, (a + round_) % circle)


def _spread(capacity: np.ndarray, wanted: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw `wanted` (group, code) with code < capacity[group], evenly over groups and without repetition.

    A group gives out all its codes before any is repeated; beyond the sum of all capacities the draw starts over.
    """
    distinct = min(wanted, int(capacity.sum()))
    level = bisect.bisect_left(range(distinct), distinct, key=lambda quota: np.minimum(capacity, quota).sum())
    quota = np.minimum(capacity, level - 1)
    quota[rng.choice(np.flatnonzero(capacity >= level), distinct - quota.sum(), replace=False)] += 1

    used = np.flatnonzero(quota)
    capacity, quota = capacity[used], quota[used]
    # A walk whose step is coprime to the capacity meets every code once; steps stay small to keep products in int64.
    start, step = rng.integers(capacity), np.zeros_like(capacity)
    while (shared := np.gcd(step, capacity) > 1).any():
        step[shared] = rng.integers(1, np.minimum(capacity[shared], 2**20) + 1)
    turn = np.arange(distinct) - np.repeat(quota.cumsum() - quota, quota)
    group = np.repeat(np.arange(len(used)), quota)
    code = (start[group] + turn * step[group]) % capacity[group]

    order = np.resize(rng.permutation(distinct), wanted)
    return used[group][order], code[order]
