"""verify_pairs against a loop over folds and thresholds and against scikit-learn; make_pairs against its promises."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from ffc_ds.errors import UserError
from ffc_ds.evaluation.verification import make_pairs, pair_distances, verify_pairs


def noisy_pairs(n, seed=0, decimals=None, noise=1.6):
    """Pairs whose genuine second view is the first plus noise; rounding makes ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    first = rng.standard_normal((n, 8))
    second = np.where(same[:, None], first, 0) + noise * rng.standard_normal((n, 8))
    if decimals is not None:
        first, second = np.round(first, decimals), np.round(second, decimals)
    return 3 * first, second, same


def insightface_procedure(first, second, same, folds):
    """The published procedure, restated pair by pair, threshold by threshold, fold by fold."""
    distances = np.array(
        [
            np.sum((a / (np.linalg.norm(a) or 1) - b / (np.linalg.norm(b) or 1)) ** 2)
            for a, b in zip(first, second, strict=True)
        ]
    )
    thresholds = np.arange(0, 4, 0.01)
    accuracies, chosen = [], []
    for train, test in KFold(folds, shuffle=False).split(distances):
        correct = [np.mean((distances[train] < threshold) == same[train]) for threshold in thresholds]
        best = thresholds[np.argmax(correct)]
        chosen.append(best)
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    return np.mean(accuracies), np.std(accuracies), np.mean(chosen), distances


@pytest.mark.parametrize("n, folds, decimals", [(600, 10, None), (607, 10, 0), (53, 7, 0), (40, 2, None), (20, 10, 0)])
def test_folds_follow_the_published_procedure(n, folds, decimals):
    first, second, same = noisy_pairs(n, seed=n, decimals=decimals)
    accuracy, std, threshold, distances = insightface_procedure(first, second, same, folds)
    result = verify_pairs(first, second, same, folds)
    np.testing.assert_allclose(pair_distances(first, second), distances, rtol=1e-12, atol=1e-14)
    assert result.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert result.accuracy_std == pytest.approx(std, abs=1e-12)
    assert result.threshold == pytest.approx(threshold, abs=1e-12)
    assert result.pairs == n


@pytest.mark.parametrize("decimals", [None, 0])
def test_auc_and_curve_equal_those_of_scikit_learn(decimals):
    first, second, same = noisy_pairs(1000, decimals=decimals)
    scores = -pair_distances(first, second)
    result = verify_pairs(first, second, same)
    assert result.auc == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(result.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(result.tpr, tpr, atol=1e-15)


@pytest.mark.parametrize("n, decimals", [(4000, None), (4000, 0), (300, 0)])
def test_tar_at_far_is_the_best_point_that_keeps_the_far(n, decimals):
    first, second, same = noisy_pairs(n, decimals=decimals)
    distances = pair_distances(first, second)
    result = verify_pairs(first, second, same)
    for far, tar in result.tar_at_far.items():
        # Every accepted set is bounded by a distance that occurs; none may accept more impostors than `far` allows.
        accepted = [distances < threshold for threshold in np.append(np.unique(distances), np.inf)]
        rates = [np.mean(accept[same]) for accept in accepted if np.mean(accept[~same]) <= far]
        assert tar == (max(rates) if far * np.sum(~same) >= 1 else None)


@pytest.mark.parametrize("impostors, resolved", [(99, False), (100, True)])
def test_a_far_below_one_impostor_is_not_reported(impostors, resolved):
    same = np.arange(impostors + 50) < 50
    rng = np.random.default_rng(0)
    result = verify_pairs(rng.standard_normal((len(same), 4)), rng.standard_normal((len(same), 4)), same)
    assert (result.tar_at_far[1e-2] is not None) == resolved
    assert result.tar_at_far[1e-3] is None


def test_perfect_and_collapsed_embeddings():
    same = np.arange(400) % 2 == 0
    first = np.tile([1.0, 0.0], (400, 1))
    perfect = verify_pairs(first, np.where(same[:, None], first, first[:, ::-1]), same)
    assert (perfect.accuracy, perfect.accuracy_std, perfect.auc, perfect.tar_at_far[1e-2]) == (1, 0, 1, 1)
    assert perfect.threshold == pytest.approx(0.01)  # the first that accepts a distance of 0
    collapsed = verify_pairs(first, first, same)
    assert (collapsed.accuracy, collapsed.auc, collapsed.tar_at_far[1e-2]) == (0.5, 0.5, 0)
    assert (pair_distances(np.zeros((400, 2)), first) == 1).all()


def test_to_dict_is_json_without_the_curve():
    result = verify_pairs(*noisy_pairs(300))
    stored = json.loads(json.dumps(result.to_dict()))
    assert set(stored) == {"accuracy", "accuracy_std", "threshold", "tar_at_far", "auc", "pairs"}
    assert stored["tar_at_far"] == {"0.01": result.tar_at_far[1e-2], "0.001": None}


def test_unusable_pairs_are_refused():
    first, second, same = noisy_pairs(50)
    broken = first.copy()
    broken[7, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 50 pairs, pair 7 first, are not finite"):
        verify_pairs(broken, second, same)
    with pytest.raises(ValueError, match="one shape"):
        verify_pairs(first, second[:-1], same)
    with pytest.raises(ValueError, match="`same` has the shape"):
        verify_pairs(first, second, same[:-1])
    with pytest.raises(ValueError, match="10 folds"):
        verify_pairs(first[:9], second[:9], same[:9])
    with pytest.raises(ValueError, match="one kind"):
        verify_pairs(first, second, np.ones(50, dtype=bool))


def identity_index(counts, seed=0):
    """A CSR index whose images are scattered, never repeated dataset rows; and the identity behind each row."""
    counts = np.asarray(counts, dtype=np.int64)
    rows = np.random.default_rng(seed).permutation(2 * counts.sum())[: counts.sum()]
    return np.append(0, counts.cumsum()), rows, dict(zip(rows, np.repeat(np.arange(len(counts)), counts), strict=True))


usable_counts = st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(
    lambda counts: max(counts) >= 2 and sum(count > 0 for count in counts) >= 2
)


@settings(max_examples=200)
@given(counts=usable_counts, pairs=st.integers(2, 300), seed=st.integers(0, 2**32))
def test_pairs_keep_their_promises(counts, pairs, seed):
    offsets, images, identity = identity_index(counts, seed)
    image_rows, left, right, same = make_pairs(offsets, images, pairs, seed)
    assert same.dtype == bool and left.shape == right.shape == same.shape == (pairs,)
    assert (np.diff(image_rows) > 0).all() and set(image_rows) <= set(images)
    assert set(left) | set(right) == set(range(len(image_rows)))

    a, b = image_rows[left], image_rows[right]
    assert (a != b).all()
    np.testing.assert_array_equal([identity[row] for row in a] == np.array([identity[row] for row in b]), same)
    assert 0 <= 2 * same.sum() - pairs <= 20 and (pairs % 20 or 2 * same.sum() == pairs)

    # Distinct pairs are used up before any is repeated, and then evenly.
    sizes = np.array(counts)
    capacity = {True: (sizes * (sizes - 1) // 2).sum(), False: (sizes.sum() ** 2 - (sizes**2).sum()) // 2}
    for kind, possible in capacity.items():
        drawn = np.sort(np.stack([a, b], 1)[same == kind], axis=1)
        _, times = np.unique(drawn, axis=0, return_counts=True)
        assert len(times) == min(len(drawn), possible) and times.max() - times.min() <= 1


def test_every_tenth_of_the_pairs_is_half_genuine():
    offsets, images, _ = identity_index(np.random.default_rng(1).integers(1, 6, 500))
    same = make_pairs(offsets, images, 6000, seed=3)[3]
    assert [fold.sum() for fold in np.split(same, 10)] == [300] * 10
    assert same[:300].all() and not same[300:600].any()


def test_identities_are_drawn_evenly_however_long_the_tail():
    counts = np.append(np.full(99, 4), 500)
    offsets, images, identity = identity_index(counts)
    image_rows, left, right, same = make_pairs(offsets, images, 800, seed=0)
    genuine = [identity[row] for row in image_rows[left[same]]]
    assert set(np.bincount(genuine)) == {4, 5} or set(np.bincount(genuine)) == {4}
    impostors = [identity[row] for row in np.append(image_rows[left[~same]], image_rows[right[~same]])]
    assert np.bincount(impostors).max() < 30
    # Once small identities have given all their six pairs, the large one gives the rest.
    image_rows, left, right, same = make_pairs(offsets, images, 2000, seed=0)
    assert np.bincount([identity[row] for row in image_rows[left[same]]]).tolist() == [6] * 99 + [1000 - 6 * 99]


def test_every_pair_of_an_identity_is_equally_likely():
    offsets, images, _ = identity_index(np.full(3000, 4))
    image_rows, left, right, same = make_pairs(offsets, images, 6000, seed=0)
    position = np.empty(images.max() + 1, dtype=int)
    position[images] = np.arange(len(images)) % 4
    ends = np.sort(position[np.stack([image_rows[left[same]], image_rows[right[same]]])], axis=0)
    times = np.bincount(4 * ends[0] + ends[1])
    assert np.count_nonzero(times) == 6 and (np.abs(times[times > 0] - 500) < 5 * 500**0.5).all()


def test_choice_depends_on_the_seed_alone():
    offsets, images, _ = identity_index(np.full(200, 3))
    first, again, other = (make_pairs(offsets, images, 400, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_large_identities_and_many_identities_do_not_overflow():
    counts = np.append(np.ones(100_000, dtype=np.int64), 3_000_000)
    offsets = np.append(0, counts.cumsum())
    _, left, right, same = make_pairs(offsets, np.arange(offsets[-1]), 2000, seed=0)
    assert len(np.unique(np.sort(np.stack([left, right], 1), axis=1), axis=0)) == 2000


@pytest.mark.parametrize("counts", [[], [5], [1, 1, 1], [0, 5, 0]])
def test_too_few_identities_are_the_users_to_mend(counts):
    offsets, images, _ = identity_index(counts)
    with pytest.raises(UserError, match="two identities or more"):
        make_pairs(offsets, images, 100, seed=0)
    with pytest.raises(UserError, match="at least 2"):
        make_pairs(offsets, images, 1, seed=0)
