"""Identification among distractors, as MegaFace has it (Kemelmacher-Shlizerman et al., CVPR 2016)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ffc_ds.evaluation.scores import BINS, LargestScores, accept_rates, histogram, pair_scores, roc
from ffc_ds.evaluation.search import BLOCK, RANKS

FARS = (1e-6, 1e-5, 1e-4)
ROUNDING = 1e-6  # of cosines in fp32: a mate and a distractor that are alike are a tie, in which the mate loses
KEPT = 1 << 16  # impostor scores that are kept in any case: small sets show their whole curve


@dataclass(frozen=True, eq=False)
class IdentificationResult:
    """What probes yield that look for each other among distractors."""

    rank: dict[str, float]
    """Share of the (probe, mate) pairs whose mate is among the first 1, 5, 10 of itself and all distractors."""
    tar_at_far: dict[str, float | None]
    """Share of them above the threshold that as few (probe, distractor) pairs are above; None if not resolved."""
    mate_pairs: int
    """Number of (probe, mate) pairs."""
    distractors: int
    """Number of distractors."""
    fpr: np.ndarray
    """False accept rates of the ROC curve, as far as 1e-4 for large sets, float64 [points], ascending."""
    tpr: np.ndarray
    """True accept rates, float64 [points]."""
    histogram: dict[str, np.ndarray]
    """Counts over `scores.BINS`, int64 [200], of the scores of mates and of distractors."""
    nearest: np.ndarray
    """The best scoring distractor of each probe, int64 [n]."""
    nearest_score: np.ndarray
    """Its score, float32 [n]."""


def identify(
    probes: np.ndarray, subjects: np.ndarray, distractors: Iterable[np.ndarray], count: int
) -> IdentificationResult:
    """Every probe looks for every other image of its subject, which alone is added to the distractors.

    Args:
        probes: unit, float32 [n, D]; subjects: int [n], some twice or more.
        distractors: their unit features in parts, float32 [any, D], as many as `count` in all. Memory is bounded by
            the probes: kept are each probe's best ten scores and the largest of all that a FAR of 1e-4 needs.
    Raises ValueError if no subject has two probes or the distractors are not `count`.
    """
    first, second = mate_pairs(subjects)
    if not len(first):
        raise ValueError("no subject has two probes, so there is nothing to find")
    mates = pair_scores(probes, first, second) - ROUNDING
    largest = LargestScores(max(KEPT, int(FARS[-1] * len(probes) * count + 1e-9) + 1))
    best = torch.full((len(probes), max(RANKS)), -torch.inf)
    nearest = torch.zeros(len(probes), dtype=torch.int64)
    counts, seen = np.zeros(len(BINS) - 1, dtype=np.int64), 0
    step = max(1, BLOCK // len(probes))
    for features in distractors:
        for start in range(0, len(features), step):
            scores = torch.from_numpy(probes) @ torch.from_numpy(features[start : start + step]).T
            largest.add(scores.numpy())
            counts += torch.histc(scores.clamp(-1, 1), len(counts), -1, 1).long().numpy()
            leading, place = scores.max(1)
            nearest = torch.where(leading > best[:, 0], place + seen, nearest)
            best = torch.cat([best, scores], 1).topk(max(RANKS), 1).values
            seen += scores.shape[1]
    if seen != count:
        raise ValueError(f"{count} distractors were announced, and {seen} came")
    ahead = (best.numpy()[first] >= mates[:, None]).sum(1)
    top, trials = largest.descending(), len(probes) * count
    fpr, tpr = roc(mates, top, trials)
    return IdentificationResult(
        rank={str(k): float(np.mean(ahead < k)) for k in RANKS},
        tar_at_far=accept_rates(mates, top, trials, FARS),
        mate_pairs=len(mates),
        distractors=count,
        fpr=fpr,
        tpr=tpr,
        histogram={"mates": histogram(mates), "distractors": counts},
        nearest=nearest.numpy(),
        nearest_score=best[:, 0].numpy(),
    )


def mate_pairs(subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (int64 [m], int64 [m]) of different positions in `subjects` (int [n]) with equal values."""
    order = np.argsort(subjects, kind="stable")
    _, starts, counts = np.unique(subjects[order], return_index=True, return_counts=True)
    size = counts**2
    group = np.repeat(np.arange(len(size)), size)
    code = np.arange(size.sum()) - np.repeat(size.cumsum() - size, size)
    first, second = code // counts[group], code % counts[group]
    different = first != second
    return order[starts[group] + first][different], order[starts[group] + second][different]
