"""Pair verification: do two images show the same identity? And the choice of held-out pairs to ask that of.

The protocol is that of "Labeled Faces in the Wild" (Huang et al., 2007) as InsightFace evaluates it: ten contiguous
folds, the threshold chosen on nine of them and judged on the tenth.
"""

import bisect
from dataclasses import dataclass, field

import numpy as np

from ffc_ds.errors import UserError
from ffc_ds.evaluation.scores import errors_allowed

THRESHOLDS = np.arange(0, 4, 0.01)
FAR_TARGETS = (1e-2, 1e-3)


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """What a set of embedded pairs yields. Thresholds are squared L2 distances of unit embeddings, 0 to 4."""

    accuracy: float
    """Mean over the folds of the accuracy on the held-out fold, 0 to 1."""
    accuracy_std: float
    """Standard deviation of the accuracy over the folds."""
    threshold: float
    """Mean over the folds of the chosen threshold."""
    tar_at_far: dict[float, float | None]
    """True accept rate at each false accept rate; None where the impostor pairs are too few to resolve that rate."""
    auc: float
    """Area under the ROC curve, ties counted half."""
    pairs: int
    """Number of pairs."""
    fpr: np.ndarray = field(repr=False)
    """False accept rates of the whole ROC curve, float64 [points], ascending from 0 to 1."""
    tpr: np.ndarray = field(repr=False)
    """True accept rates of the whole ROC curve, float64 [points]."""

    def to_dict(self) -> dict:
        """The figures without the curve, ready for JSON; the keys of `tar_at_far` become strings such as "0.01"."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "threshold": self.threshold,
            "tar_at_far": {f"{far:g}": tar for far, tar in self.tar_at_far.items()},
            "auc": self.auc,
            "pairs": self.pairs,
        }


def verify_pairs(first: np.ndarray, second: np.ndarray, same: np.ndarray, folds: int = 10) -> VerificationResult:
    """Verify pairs `first[i]`, `second[i]` (float [n, D], any scale) against `same` (bool [n]), in the order given.

    Folds are contiguous and not shuffled, so the order must mix genuine and impostor pairs, as pair files do.
    Raises ValueError if shapes disagree, an embedding is not finite, there are fewer pairs than folds, or either
    genuine or impostor pairs are missing.
    """
    same = np.asarray(same, dtype=bool)
    distances = pair_distances(first, second)
    if same.shape != distances.shape:
        raise ValueError(f"{len(distances)} pairs of embeddings, but `same` has the shape {same.shape}")
    if not 2 <= folds <= len(same):
        raise ValueError(f"{folds} folds cannot be made of {len(same)} pairs: take 2 folds or more, and as many pairs")
    if same.all() or not same.any():
        raise ValueError("verification needs both genuine and impostor pairs, but all pairs are of one kind")

    accuracies, thresholds = _cross_validate(distances, same, folds)
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    below, up_to = np.searchsorted(impostor, genuine, "left"), np.searchsorted(impostor, genuine, "right")
    points = np.unique(distances)
    return VerificationResult(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(thresholds.mean()),
        tar_at_far={far: _tar_at_far(genuine, impostor, far) for far in FAR_TARGETS},
        auc=float(1 - (below + up_to).mean() / (2 * len(impostor))),
        pairs=len(same),
        fpr=np.append(0.0, np.searchsorted(impostor, points, "right") / len(impostor)),
        tpr=np.append(0.0, np.searchsorted(genuine, points, "right") / len(genuine)),
    )


def pair_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared L2 distances (float64 [n], 0 to 4) of two arrays of embeddings [n, D] scaled to unit length.

    An embedding of length 0 stays 0. Raises ValueError if the shapes differ or a value is not finite.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"pairs must be two arrays [n, D] of one shape, not {first.shape} and {second.shape}")
    broken = ~(np.isfinite(first).all(1) & np.isfinite(second).all(1))
    if broken.any():
        raise ValueError(f"{broken.sum()} of {len(broken)} pairs, pair {broken.argmax()} first, are not finite")
    return np.square(_unit(first) - _unit(second)).sum(1)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths == 0, 1, lengths)


def _cross_validate(distances: np.ndarray, same: np.ndarray, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each held-out fold, and the threshold that is best (the smallest of equals) on all the others."""
    sizes = _even_sizes(len(same), folds)
    fold = np.repeat(np.arange(folds), sizes)
    # A pair is accepted (distance < threshold) from its bin on, which gains a genuine pair and loses an impostor.
    bins = np.searchsorted(THRESHOLDS, distances, "right")
    gains = np.zeros((folds, len(THRESHOLDS) + 1), dtype=np.int64)
    np.add.at(gains, (fold, bins), np.where(same, 1, -1))
    impostors = np.bincount(fold[~same], minlength=folds)
    correct = impostors[:, None] + gains.cumsum(1)[:, :-1]

    best = (correct.sum(0) - correct).argmax(1)
    return correct[np.arange(folds), best] / sizes, THRESHOLDS[best]


def _even_sizes(total: int, parts: int) -> np.ndarray:
    return total // parts + (np.arange(parts) < total % parts)


def _tar_at_far(genuine: np.ndarray, impostor: np.ndarray, far: float) -> float | None:
    """Share of genuine pairs below the largest threshold that accepts at most `far` of the impostors; both sorted."""
    allowed = errors_allowed(far, len(impostor))
    if allowed is None:
        return None
    return float(np.searchsorted(genuine, impostor[allowed], "left") / len(genuine))


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
    same = np.repeat(np.arange(20) % 2 == 0, _even_sizes(pairs, 20))
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
