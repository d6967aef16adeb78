"""Identification among distractors against a loop over probes and mates, however the distractors are cut."""

import itertools

import numpy as np
import pytest

from ffc_ds.evaluation import identification as module
from ffc_ds.evaluation.identification import identify, mate_pairs


def features(rng, n, dim=8):
    """Multiples of 1/4, so that products are exact and scores tie."""
    found = rng.standard_normal((n, dim))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return (np.round(4 * found) / 4).astype(np.float32)


def one_by_one(probes, subjects, distractors, fars):
    ranks, genuine = [], []
    for i, j in itertools.permutations(range(len(probes)), 2):
        if subjects[i] == subjects[j]:
            score = probes[i] @ probes[j]
            genuine.append(score)
            ranks.append(1 + sum(probes[i] @ other >= score for other in distractors))
    impostor = (probes @ distractors.T).ravel()
    rates = {}
    for far in fars:
        accepted = [np.mean(genuine > t) for t in np.append(-2, np.unique(impostor)) if np.mean(impostor > t) <= far]
        rates[f"{far:g}"] = max(accepted) if far * impostor.size >= 1 else None
    return {str(k): np.mean(np.array(ranks) <= k) for k in (1, 5, 10)}, rates, impostor


@pytest.mark.parametrize("part, block", [(2000, 1 << 24), (700, 1 << 24), (300, 4000), (2000, 1)])
def test_identification_equals_its_definition(part, block, monkeypatch):
    fars = (1e-5, 1e-4, 1e-3)
    monkeypatch.setattr(module, "FARS", fars)
    monkeypatch.setattr(module, "KEPT", 1)
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    subjects = rng.permutation(np.repeat(np.arange(9), [1, 2, 3, 4, 2, 3, 5, 2, 1]))
    probes = features(rng, 9)[subjects] + features(rng, len(subjects)) / 2
    distractors = features(rng, 2000)
    rank, rates, impostor = one_by_one(probes, subjects, distractors, fars)
    parts = (distractors[start : start + part] for start in range(0, 2000, part))
    found = identify(probes, subjects, parts, 2000)
    assert found.rank == pytest.approx(rank, abs=1e-12) and 0 < rank["1"] < rank["10"] < 1
    assert found.tar_at_far == pytest.approx(rates, abs=1e-12)
    assert rates["1e-05"] is None and 0 < rates["0.0001"] < rates["0.001"]
    scores = impostor.reshape(len(probes), -1)
    np.testing.assert_array_equal(found.nearest_score, scores.max(1))
    np.testing.assert_array_equal(scores[np.arange(len(probes)), found.nearest], scores.max(1))
    assert (found.mate_pairs, found.distractors) == (50, 2000)
    assert [counts.sum() for counts in found.histogram.values()] == [50, impostor.size]
    assert found.fpr[-1] <= fars[-1] and (np.diff(found.tpr) >= 0).all()


def test_where_all_embeddings_are_alike_nobody_is_found():
    """However the last bit of a product is rounded, which hardly is as in that of a matrix."""
    for seed in range(40):
        same = np.random.default_rng(seed).normal(size=512).astype(np.float32)
        same /= np.linalg.norm(same)
        probes, subjects = np.tile(same, (40, 1)), np.repeat(np.arange(20), 2)
        found = identify(probes, subjects, [np.tile(same, (1000, 1))], 1000)
        assert found.rank == {"1": 0.0, "5": 0.0, "10": 0.0} and not found.tar_at_far["0.0001"]


def test_all_mates_are_paired_in_both_orders():
    subjects = np.array([5, 2, 5, 9, 5, 2])
    assert set(zip(*mate_pairs(subjects), strict=True)) == {(1, 5), (5, 1), *itertools.permutations((0, 2, 4), 2)}
    assert len(mate_pairs(np.arange(4))[0]) == 0


def test_what_cannot_be_identified():
    probes = features(np.random.default_rng(0), 4)
    with pytest.raises(ValueError, match="no subject has two probes"):
        identify(probes, np.arange(4), [probes], 4)
    with pytest.raises(ValueError, match="5 distractors were announced, and 4 came"):
        identify(probes, np.zeros(4, dtype=int), [probes], 5)
