"""1:N search against a loop over probes, over ties, several entries of a subject, and blocks."""

import numpy as np
import pytest

from ffc_ds.evaluation import search as module
from ffc_ds.evaluation.search import RANKS, search, search_joined

FPIRS = (1e-3, 1e-2, 1e-1, 0.5)


def unit(rng, n, dim=6, decimals=None):
    features = rng.standard_normal((n, dim))
    if decimals is not None:
        features = np.round(features, decimals) + 0.5
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def one_by_one(probes, probe_subjects, gallery, gallery_subjects):
    """The definitions, restated probe by probe and threshold by threshold."""
    ranks, first_scores, strangers = [], [], []
    for probe, subject in zip(probes, probe_subjects, strict=True):
        scores = [float(np.float32(probe @ entry)) for entry in gallery]
        mates = [score for score, other in zip(scores, gallery_subjects, strict=True) if other == subject]
        others = [score for score, other in zip(scores, gallery_subjects, strict=True) if other != subject]
        if mates:
            ranks.append(1 + sum(score >= max(mates) for score in others))
            first_scores.append(max(mates))
        else:
            strangers.append(max(scores))
    rank = {str(k): np.mean([r <= k for r in ranks]) for k in RANKS}
    tpir = {}
    for fpir in FPIRS:
        rates = []
        for threshold in [-2.0, *strangers]:
            if np.mean([score > threshold for score in strangers]) <= fpir:
                rates.append(np.mean([r == 1 and s > threshold for r, s in zip(ranks, first_scores, strict=True)]))
        tpir[f"{fpir:g}"] = max(rates) if fpir * len(strangers) >= 1 else None
    return rank, tpir, len(ranks), len(strangers)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("block", [1 << 24, 100])
def test_search_equals_its_definition(decimals, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "FPIRS", FPIRS)
    rng = np.random.default_rng(0)
    subjects = np.arange(60)
    gallery_subjects = np.append(subjects[:40], [3, 3, 7])  # some have several entries
    gallery = unit(rng, len(gallery_subjects), decimals=decimals)
    probe_subjects = rng.choice(subjects, 300)
    nearest = gallery[probe_subjects % 40]
    probes = 0.8 * nearest + 0.6 * unit(rng, 300, decimals=decimals)
    probes = (probes / np.linalg.norm(probes, axis=1, keepdims=True)).astype(np.float32)
    # matrix products round by their shape: exact ties need exact numbers
    if decimals is not None:
        gallery, probes = (np.round(4 * x).astype(np.float32) / 4 for x in (gallery, probes))
    found = search(probes, probe_subjects, gallery, gallery_subjects)
    rank, tpir, mated, non_mated = one_by_one(probes, probe_subjects, gallery, gallery_subjects)
    assert (found.mated, found.non_mated) == (mated, non_mated) and 80 < non_mated < 220
    assert found.rank == pytest.approx(rank, abs=1e-12)
    assert found.tpir_at_fpir == pytest.approx(tpir, abs=1e-12)
    assert tpir["0.001"] is None and 0 < tpir["0.1"] < 1 and 0 < rank["1"] < rank["10"]
    assert [counts.sum() for counts in found.histogram.values()] == [mated, non_mated]


def test_a_gallery_with_everybody_has_no_false_positives_to_count():
    features = unit(np.random.default_rng(0), 30)
    found = search(features, np.arange(30), features, np.arange(30))
    assert found.rank == {"1": 1, "5": 1, "10": 1} and set(found.tpir_at_fpir.values()) == {None}
    nobody = search(features, np.arange(30), features, np.arange(100, 130))
    assert set(nobody.rank.values()) == {None} and set(nobody.tpir_at_fpir.values()) == {None}


def test_a_joined_gallery_with_too_few_others_resolves_no_rate():
    rng = np.random.default_rng(0)
    probes, gallery = unit(rng, 20), unit(rng, 2)
    alone = search_joined(probes, np.zeros(20, int), gallery[:1], np.zeros(1, int))
    assert alone.rank == {"1": 1, "5": 1, "10": 1} and set(alone.tpir_at_fpir.values()) == {None}
    assert [counts.sum() for counts in alone.histogram.values()] == [20, 0]
    two = search_joined(probes, np.zeros(20, int), gallery, np.arange(2))  # 20 others, of which 2 are allowed
    mates, others = (probes @ gallery.T).T
    assert two.tpir_at_fpir["0.1"] == pytest.approx(np.mean(mates > np.sort(others)[-2]))


@pytest.mark.parametrize("block", [1 << 24, 100])
def test_in_joined_galleries_searches_without_a_mate_are_left_out(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    gallery, probes, subjects = unit(rng, 40), unit(rng, 300), np.arange(300) % 50
    probes[:, :2] += gallery[subjects % 40, :2]
    found = search_joined(probes, subjects, gallery, np.arange(40))
    known = subjects < 40
    scores = probes[known] @ gallery.T
    is_mate = subjects[known][:, None] == np.arange(40)
    mates, others = scores[is_mate], np.sort(scores[~is_mate])[::-1]
    assert (found.mated, found.non_mated) == (240, 0)
    assert found.rank["1"] == pytest.approx(np.mean(scores.argmax(1) == subjects[known]))
    expected = {"0.001": None, "0.01": np.mean(mates > others[2]), "0.1": np.mean(mates > others[23])}
    assert found.tpir_at_fpir == pytest.approx(expected) and 0 < expected["0.01"] < expected["0.1"]
    assert [counts.sum() for counts in found.histogram.values()] == [240, 240 * 39]
    nobody = search_joined(probes, subjects + 100, gallery, np.arange(40))
    assert set(nobody.rank.values()) == {None} and nobody.mated == 0
    assert [counts.sum() for counts in nobody.histogram.values()] == [0, 0]
