"""1:N identification: who in a gallery is it, and is it anyone there (open set)?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ffc_ds.evaluation.scores import LargestScores, accept_rates, errors_allowed, histogram

RANKS = (1, 5, 10)
FPIRS = (1e-3, 1e-2, 1e-1)
BLOCK = 1 << 24  # scores in memory at once: 64 MiB


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What searches yield. A search is mated if the gallery holds its subject."""

    rank: dict[str, float | None]
    """Share of the mated searches whose mate is among the first 1, 5, 10; None without mated searches."""
    tpir_at_fpir: dict[str, float | None]
    """True positive identification rate at each false positive one: share of the mated searches whose mate is first
    and above the threshold that at most that share of the others find anyone above; None if these are too few."""
    mated: int
    """Number of mated searches."""
    non_mated: int
    """Number of the others."""
    histogram: dict[str, np.ndarray]
    """Counts over `scores.BINS`, int64 [200], of the scores of mates and of the best candidates of the others."""


def search(
    probes: np.ndarray, probe_subjects: np.ndarray, gallery: np.ndarray, gallery_subjects: np.ndarray
) -> SearchResult:
    """Search for each probe (unit, float32 [n, D]; its subject, int [n]) in a gallery (likewise, [m, D] and [m]).

    A subject with several entries is found by the best of them; who ties with the mate counts as before it. This is the
    protocol of IJB, in which each gallery is searched alone.
    """
    mate = np.full(len(probes), -np.inf, dtype=np.float32)
    ahead = np.zeros(len(probes), dtype=np.int64)
    best = np.empty(len(probes), dtype=np.float32)
    for block, mates, others in _compared(probes, probe_subjects, gallery, gallery_subjects):
        mate[block] = mates
        ahead[block] = (others >= mates[:, None]).sum(1)
        best[block] = others.max(1)
    mated = np.isfinite(mate)
    strangers = np.sort(best[~mated])[::-1]
    found_first = np.where(ahead == 0, mate, -np.inf)[mated]
    return SearchResult(
        rank=_ranks(ahead[mated]),
        tpir_at_fpir=accept_rates(found_first, strangers, len(strangers), FPIRS),
        mated=int(mated.sum()),
        non_mated=len(strangers),
        histogram={"mates": histogram(mate[mated]), "best of non-mated searches": histogram(strangers)},
    )


def search_joined(
    probes: np.ndarray, probe_subjects: np.ndarray, gallery: np.ndarray, gallery_subjects: np.ndarray
) -> SearchResult:
    """The figures of InsightFace's `ijb_1n.py`, for which the galleries are joined into one and every search is mated.

    Arguments as of `search`; searches without a mate are left out. At an FPIR mates count, whatever their rank, above
    the threshold that so many scores of others, of all searches, reach as that share of the searches is, rounded up;
    None if there are not so many.
    """
    known = np.isin(probe_subjects, gallery_subjects)
    probes, probe_subjects = probes[known], probe_subjects[known]
    mate, ahead = np.empty(len(probes), dtype=np.float32), np.empty(len(probes), dtype=np.int64)
    largest, counts = LargestScores(math.ceil(max(FPIRS) * len(probes))), histogram(np.empty(0))
    for block, mates, others in _compared(probes, probe_subjects, gallery, gallery_subjects):
        mate[block] = mates
        ahead[block] = (others >= mates[:, None]).sum(1)
        largest.add(others)
        counts += histogram(others[np.isfinite(others)])
    top, tpir = largest.descending(), {}
    for rate in FPIRS:
        reached = math.ceil(rate * len(probes))
        resolved = errors_allowed(rate, len(probes)) is not None and reached <= len(top)
        tpir[f"{rate:g}"] = float(np.mean(mate > top[reached - 1])) if resolved else None
    return SearchResult(_ranks(ahead), tpir, len(probes), 0, {"mates": histogram(mate), "others": counts})


def _compared(
    probes: np.ndarray, probe_subjects: np.ndarray, gallery: np.ndarray, gallery_subjects: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks of probes, the best score of the mate of each, and the scores of all others; -inf where there is none."""
    step = max(1, BLOCK // len(gallery))
    for start in range(0, len(probes), step):
        block = slice(start, start + step)
        scores = probes[block] @ gallery.T
        is_mate = probe_subjects[block, None] == gallery_subjects
        yield block, np.where(is_mate, scores, -np.inf).max(1), np.where(is_mate, -np.inf, scores)


def _ranks(ahead: np.ndarray) -> dict[str, float | None]:
    return {str(k): float(np.mean(ahead < k)) if len(ahead) else None for k in RANKS}
