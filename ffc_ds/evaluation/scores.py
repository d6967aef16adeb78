"""Scores of genuine and impostor pairs, by the million, and what is read off them.

A score is a cosine, larger for more alike. Everything here is exact. What a low false accept rate needs is the largest
impostor scores alone, so that impostors beyond what memory holds are passed through `LargestScores`, block by block.
"""

import numpy as np

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
BINS = np.linspace(-1, 1, 201)
BLOCK = 1 << 12  # pairs scored at once: 16 MiB of features at 512 dimensions, about what a cache holds


def pair_scores(features: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines (float32 [n]) of `features[left]` and `features[right]`; features: unit, float32 [m, D]."""
    scores = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), BLOCK):
        block = slice(start, start + BLOCK)
        np.einsum("nd,nd->n", features[left[block]], features[right[block]], out=scores[block])
    return scores


def errors_allowed(rate: float, trials: int) -> int | None:
    """How many of `trials` may go wrong at an error rate; None if that is less than one: it cannot be resolved."""
    allowed = int(rate * trials + 1e-9)
    return allowed if allowed >= 1 else None


def accept_rate(genuine: np.ndarray, largest: np.ndarray, trials: int, rate: float) -> float | None:
    """Share of the genuine scores above the lowest threshold that at most `rate` of the impostor scores are above.

    largest: the largest of the impostor scores, descending, more than `rate * trials` of them; trials: how many
    impostor scores there are in all. None if so few cannot resolve the rate.
    """
    allowed = errors_allowed(rate, trials)
    if allowed is None or not len(genuine):
        return None
    return float(np.mean(genuine > largest[allowed]))


def accept_rates(genuine: np.ndarray, largest: np.ndarray, trials: int, rates=FARS) -> dict[str, float | None]:
    """`accept_rate` for each of the rates, as strings such as "0.001" or "1e-06"."""
    return {f"{rate:g}": accept_rate(genuine, largest, trials, rate) for rate in rates}


def roc(genuine: np.ndarray, largest: np.ndarray, trials: int, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Points of the ROC curve (false and true accept rates, float64 [<= points + 1], ascending), evenly over log FAR.

    Arguments as of `accept_rate`. Where not all impostors are given the curve ends with the last one.
    """
    places = np.unique(np.geomspace(1, len(largest), points).astype(np.int64)) - 1
    genuine = np.sort(genuine)
    false = np.searchsorted(-largest, -largest[places], "left") / trials
    true = 1 - np.searchsorted(genuine, largest[places], "right") / len(genuine)
    return (np.append(false, 1.0), np.append(true, 1.0)) if len(largest) == trials else (false, true)


def area_under_roc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Chance that a genuine score is above an impostor score, ties counted half. impostor: ascending."""
    below, up_to = (np.searchsorted(impostor, genuine, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(impostor)))


def histogram(scores: np.ndarray) -> np.ndarray:
    """How many scores are in each of the intervals of BINS, int64 [200]. Rounding may carry a cosine beyond 1."""
    return np.histogram(np.clip(scores, -1, 1), BINS)[0]


class LargestScores:
    """The k largest of any number of scores, exactly, in the memory of 2 k scores and one block.

    A threshold that k scores seen so far have reached rules out most of a block by one comparison; what passes is
    collected, and cut back to k by a partial sort whenever it has grown to 2 k.
    """

    def __init__(self, k: int):
        self.k, self._floor = k, -np.inf
        self._kept = np.empty(0, dtype=np.float32)

    def add(self, block: np.ndarray) -> None:
        """Take in scores, float32 of any shape."""
        self._kept = np.append(self._kept, block[block > self._floor])
        if len(self._kept) > 2 * self.k:
            self._kept = np.partition(self._kept, -self.k)[-self.k :]
            self._floor = self._kept[0]

    def descending(self) -> np.ndarray:
        """float32 [at most k]."""
        return np.sort(self._kept)[::-1][: self.k]
