"""Rates against scikit-learn and against verify_pairs; the largest scores against a sort; memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from ffc_ds.evaluation.scores import (
    BINS,
    LargestScores,
    accept_rates,
    area_under_roc,
    errors_allowed,
    histogram,
    pair_scores,
    roc,
)
from ffc_ds.evaluation.verification import FAR_TARGETS, verify_pairs

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def some_scores(genuine, impostor, decimals, seed=0):
    """Cosines of both kinds, rounded so that they tie."""
    rng = np.random.default_rng(seed)

    def draw(mean, n):
        return np.round(np.tanh(rng.normal(mean, 0.3, n)), decimals).astype(np.float32)

    return draw(0.5, genuine), draw(0, impostor)


def joined(genuine, impostor):
    return np.arange(len(genuine) + len(impostor)) < len(genuine), np.append(genuine, impostor)


@pytest.mark.parametrize("decimals", [6, 2, 1])
@pytest.mark.parametrize("impostors", [700, 30_000])
def test_rates_curve_and_area_equal_those_of_scikit_learn(decimals, impostors):
    genuine, impostor = some_scores(500, impostors, decimals)
    fpr, tpr, _ = roc_curve(*joined(genuine, impostor), drop_intermediate=False)
    largest = np.sort(impostor)[::-1]
    for rate, found in accept_rates(genuine, largest, impostors, RATES).items():
        expected = tpr[fpr <= float(rate)].max() if float(rate) * impostors >= 1 else None
        assert found == pytest.approx(expected, abs=1e-12)
    assert area_under_roc(genuine, largest[::-1]) == pytest.approx(roc_auc_score(*joined(genuine, impostor)), abs=1e-12)

    false, true = roc(genuine, largest, impostors)
    known = {(round(x, 9), round(y, 9)) for x, y in zip(fpr, tpr, strict=True)}
    assert {(round(x, 9), round(y, 9)) for x, y in zip(false, true, strict=True)} <= known
    assert (np.diff(false) >= 0).all() and (false[-1], true[-1]) == (1, 1) and len(false) <= 1001


def test_a_part_of_the_impostors_gives_the_beginning_of_the_same_curve():
    genuine, impostor = some_scores(300, 50_000, 4)
    largest = np.sort(impostor)[::-1]
    assert accept_rates(genuine, largest[:51], 50_000, (1e-4, 1e-3)) == accept_rates(
        genuine, largest, 50_000, (1e-4, 1e-3)
    )
    whole = set(zip(*(np.round(each, 9) for each in roc(genuine, largest, 50_000, 10**6)), strict=True))
    part = set(zip(*(np.round(each, 9) for each in roc(genuine, largest[:500], 50_000)), strict=True))
    assert part <= whole and max(part)[0] < 0.011


@pytest.mark.parametrize("n", [198, 200, 2000, 2002])
def test_the_rule_of_what_is_resolved_is_that_of_verify_pairs(n):
    rng = np.random.default_rng(n)
    first, second = rng.standard_normal((2, n, 4))
    same = np.arange(n) % 2 == 0
    expected = verify_pairs(first, second, same).tar_at_far
    assert [errors_allowed(far, n // 2) is None for far in FAR_TARGETS] == [tar is None for tar in expected.values()]
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    scores = (first * second).sum(1)
    found = accept_rates(scores[same], np.sort(scores[~same])[::-1], n // 2, FAR_TARGETS)
    assert list(found.values()) == list(expected.values())


@settings(max_examples=100)
@given(
    k=st.integers(1, 60),
    sizes=st.lists(st.integers(0, 80), min_size=1, max_size=12),
    decimals=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_the_largest_scores_are_those_of_a_sort(k, sizes, decimals, seed):
    blocks = [np.random.default_rng([seed, i]).random(n).round(decimals).astype("f4") for i, n in enumerate(sizes)]
    largest = LargestScores(k)
    for block in blocks:
        largest.add(block)
        assert len(largest._kept) <= 2 * k + block.size
    np.testing.assert_array_equal(largest.descending(), np.sort(np.concatenate(blocks))[::-1][:k])


def test_scores_of_many_pairs_take_the_memory_of_the_scores():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1000, 64), dtype=np.float32)
    left, right = rng.integers(1000, size=(2, 400_000), dtype=np.int32)
    tracemalloc.start()
    scores = pair_scores(features, left, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # all features of all pairs at once would take 195 MiB
    chosen = rng.integers(400_000, size=1000)
    expected = [np.dot(features[left[i]].astype(float), features[right[i]]) for i in chosen]
    np.testing.assert_allclose(scores[chosen], expected, rtol=1e-4, atol=1e-4)


def test_histogram_loses_no_score():
    scores = np.array([-1.0000001, -1, -0.985, 0, 0.999, 1, 1.0000001], dtype=np.float32)
    counts = histogram(scores)
    assert counts.sum() == 7 and counts[0] == 2 and counts[1] == 1 and counts[100] == 1 and counts[-1] == 3
    assert len(counts) == len(BINS) - 1
