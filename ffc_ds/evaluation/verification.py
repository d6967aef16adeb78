"""Pair verification: do two images show the same identity?

The protocol is that of "Labeled Faces in the Wild" (Huang et al., 2007) as InsightFace evaluates it: ten contiguous
folds, the threshold chosen on nine of them and judged on the tenth. Public code tries the thresholds 0, 0.01, ... 3.99
and so says 50 % of embeddings that all lie closer together than that, whatever they tell apart. Here thresholds stand
between all distances that occur, so that the accuracy depends on the order of the distances alone, as the area under
the ROC does; as there, the smallest of the best is taken. Where no step of that grid holds two different distances,
both accuracies are the same; else they differ by a fraction of the deviation over the folds, either way.
"""

from dataclasses import dataclass, field

import numpy as np

from ffc_ds.evaluation.scores import errors_allowed

FOLDS = 10
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


def verify_pairs(
    first: np.ndarray, second: np.ndarray, same: np.ndarray, folds: int | np.ndarray = FOLDS
) -> VerificationResult:
    """Verify pairs `first[i]`, `second[i]` (float [n, D], any scale) against `same` (bool [n]), in the order given.

    folds: the fold of each pair, int [n], or how many to make, of even size: contiguous ones, as pair files intend,
    unless that leaves one without genuine or without impostor pairs, as in a list of all genuine pairs before all
    others. Then each kind is divided evenly among the folds in its own order.

    Raises ValueError if shapes disagree, an embedding is not finite, there are fewer pairs than folds or fewer than two
    folds, or either genuine or impostor pairs are missing.
    """
    same = np.asarray(same, dtype=bool)
    distances = pair_distances(first, second)
    if same.shape != distances.shape:
        raise ValueError(f"{len(distances)} pairs of embeddings, but `same` has the shape {same.shape}")
    if same.all() or not same.any():
        raise ValueError("verification needs both genuine and impostor pairs, but all pairs are of one kind")

    accuracies, thresholds = _cross_validate(distances, same, _fold_of_each(same, folds))
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


def _fold_of_each(same: np.ndarray, folds: int | np.ndarray) -> np.ndarray:
    """Fold (int [n], from 0 on without gaps) of each pair."""
    if not isinstance(folds, int):
        found, fold = np.unique(folds, return_inverse=True)
        if fold.shape != same.shape or len(found) < 2:
            raise ValueError(f"{len(found)} folds of {fold.size} pairs: each of {len(same)} needs one of 2 or more")
        return fold
    if not 2 <= folds <= len(same):
        raise ValueError(f"{folds} folds cannot be made of {len(same)} pairs: take 2 folds or more, and as many pairs")
    fold = np.repeat(np.arange(folds), even_sizes(len(same), folds))
    if all(len(np.unique(fold[kind])) == folds for kind in (same, ~same)):
        return fold
    place = np.empty(len(same))
    for kind in (same, ~same):
        place[kind] = (np.arange(kind.sum()) + 0.5) / kind.sum()
    mixed = np.empty_like(fold)
    mixed[np.argsort(place, kind="stable")] = fold
    return mixed


def _cross_validate(distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each held-out fold, and the threshold that is best on all the others."""
    order = np.argsort(distances)
    distances, same, fold = distances[order], same[order], fold[order]
    accuracies, thresholds = np.empty((2, fold.max() + 1))
    for held_out in range(len(thresholds)):
        test = fold == held_out
        thresholds[held_out] = _best_threshold(distances[~test], same[~test])
        accuracies[held_out] = np.mean((distances[test] < thresholds[held_out]) == same[test])
    return accuracies, thresholds


def _best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The middle of the best gap between neighbouring distances (ascending), the first of equals.

    Smaller distances are accepted. Beyond the ends, where none or all are, gaps are as narrow as can be.
    """
    below = np.append(np.nextafter(distances[0], -np.inf), distances)
    above = np.append(distances, np.nextafter(distances[-1], np.inf))
    correct = np.append(0, np.where(same, 1, -1).cumsum())  # but for the number of impostors
    correct[below == above] = -len(same)  # equal distances are accepted together
    best = correct.argmax()
    # The middle of two numbers without another between them would be one of them.
    return max((below[best] + above[best]) / 2, np.nextafter(below[best], np.inf))


def even_sizes(total: int, parts: int) -> np.ndarray:
    """Sizes (int [parts]) that differ by one at most, larger ones first, of `total` in all."""
    return total // parts + (np.arange(parts) < total % parts)


def _tar_at_far(genuine: np.ndarray, impostor: np.ndarray, far: float) -> float | None:
    """Share of genuine pairs below the largest threshold that accepts at most `far` of the impostors; both sorted."""
    allowed = errors_allowed(far, len(impostor))
    if allowed is None:
        return None
    return float(np.searchsorted(genuine, impostor[allowed], "left") / len(genuine))
