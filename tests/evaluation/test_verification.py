"""verify_pairs against loops over folds and thresholds and against scikit-learn, at any scale of the embeddings."""

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from ffc_ds.data.faces import Faces
from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_files import write_pair_bin
from ffc_ds.evaluation.verification import pair_distances, verify_pairs
from ffc_ds.evaluation.verifier import Pairs, verify
from tests.tables import png, table


def noisy_pairs(n, seed=0, decimals=None, noise=1.6):
    """Pairs whose genuine second view is the first plus noise; rounding makes ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    first = rng.standard_normal((n, 8))
    second = np.where(same[:, None], first, 0) + noise * rng.standard_normal((n, 8))
    if decimals is not None:
        first, second = np.round(first, decimals), np.round(second, decimals)
    return 3 * first, second, same


def unit_distances(first, second):
    return np.array(
        [
            np.sum((a / (np.linalg.norm(a) or 1) - b / (np.linalg.norm(b) or 1)) ** 2)
            for a, b in zip(first, second, strict=True)
        ]
    )


def on_the_fields_grid(distances, same):
    return np.arange(0, 4, 0.01)


def between_all_distances(distances, same):
    """Thresholds that accept none, those below the middle of each gap, and all."""
    points = np.unique(distances)
    return np.array([points[0], *((a + b) / 2 for a, b in itertools.pairwise(points)), np.nextafter(points[-1], 9)])


def procedure(distances, same, folds, candidates=between_all_distances):
    """The published procedure threshold by threshold, fold by fold, with thresholds of either kind."""
    accuracies, chosen = [], []
    for train, test in KFold(folds, shuffle=False).split(distances):
        thresholds = candidates(distances[train], same[train])
        best = thresholds[np.argmax([np.mean((distances[train] < each) == same[train]) for each in thresholds])]
        chosen.append(best)
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    return np.mean(accuracies), np.std(accuracies), np.mean(chosen)


def figures(result):
    return result.accuracy, result.accuracy_std, result.threshold


@pytest.mark.parametrize("n, folds, decimals", [(600, 10, None), (607, 10, 0), (53, 7, 0), (40, 2, None), (90, 10, 0)])
def test_folds_follow_the_published_procedure(n, folds, decimals):
    first, second, same = noisy_pairs(n, seed=n, decimals=decimals)
    distances = unit_distances(first, second)
    np.testing.assert_allclose(pair_distances(first, second), distances, rtol=1e-12, atol=1e-14)
    # Both add in another order, and one ulp would tell equal distances apart.
    result = verify_pairs(first, second, same, folds)
    expected = procedure(pair_distances(first, second), same, folds)
    assert figures(result) == pytest.approx(expected, abs=1e-12)
    assert result.pairs == n


def at_distances(distances):
    """Pairs of unit embeddings at these squared distances, the same embeddings for the same distance."""
    points, place = np.unique(distances, return_inverse=True)
    half = np.arcsin(np.sqrt(points) / 2)
    upper, lower = (np.stack([np.cos(half), sign * np.sin(half)], 1)[place] for sign in (1, -1))
    return upper, lower


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.6])
def test_where_the_fields_grid_tells_all_distances_apart_accuracy_is_the_same(overlap):
    rng = np.random.default_rng(0)
    same = np.arange(6000) % 600 < 300
    distances = np.clip(rng.normal(np.where(same, 1, 1.7), overlap), 0.2, 3.8).round(2) + 0.005
    first, second = at_distances(distances)
    accuracy, std, threshold = procedure(distances, same, 10, on_the_fields_grid)
    result = verify_pairs(first, second, same)
    assert (result.accuracy, result.accuracy_std) == pytest.approx((accuracy, std), abs=1e-12)
    assert abs(result.threshold - threshold) < 0.1 and accuracy < 1


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_on_ordinary_embeddings_accuracy_is_that_of_the_fields_grid_within_its_deviation(noise):
    rng = np.random.default_rng(0)
    same = np.arange(6000) % 600 < 300
    first = rng.standard_normal((6000, 64))
    second = np.where(same[:, None], first, rng.standard_normal((6000, 64))) + noise * rng.standard_normal((6000, 64))
    accuracy, std, _ = procedure(pair_distances(first, second), same, 10, on_the_fields_grid)
    assert abs(verify_pairs(first, second, same).accuracy - accuracy) <= std / 2 < 0.01


def test_accuracy_depends_on_the_order_of_distances_alone():
    rng = np.random.default_rng(0)
    same = np.arange(600) % 60 < 30
    distances = rng.uniform(np.where(same, 0.0, 0.5), np.where(same, 1.0, 1.5))
    expected = verify_pairs(*at_distances(distances), same)
    distances[distances > 0.1] = 0.1 + distances[distances > 0.1] ** 8 / 1e6  # many in one step of the field's grid
    found = verify_pairs(*at_distances(distances), same)
    assert (found.accuracy, found.accuracy_std, found.auc) == (expected.accuracy, expected.accuracy_std, expected.auc)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-5, 1e-7])
def test_nearly_collapsed_embeddings_are_judged_like_any_other(spread):
    rng = np.random.default_rng(0)
    same = np.arange(600) % 60 < 30
    first = rng.standard_normal((600, 8))
    second = np.where(same[:, None], first + 0.3 * rng.standard_normal((600, 8)), rng.standard_normal((600, 8)))
    center = np.full(8, 10.0)
    collapsed = center + spread * first, center + spread * second
    distances = pair_distances(*collapsed)
    assert distances.max() < 0.01
    result = verify_pairs(*collapsed, same)
    assert figures(result) == pytest.approx(procedure(distances, same, 10), rel=1e-12)
    assert result.accuracy > 0.9 and result.auc > 0.95
    assert procedure(distances, same, 10, on_the_fields_grid)[0] < 0.56  # all pairs are called genuine


def test_a_list_of_one_kind_after_the_other_is_mixed_before_it_is_cut():
    """As CALFW's: its folds are those of all lists that alternate."""
    first, second, same = noisy_pairs(600)
    kinds = np.argsort(~same, kind="stable")
    genuine, impostor = kinds[: same.sum()], kinds[same.sum() :]
    fold = np.empty(600, dtype=int)
    for kind in (genuine, impostor):
        fold[kind] = np.arange(len(kind)) * 10 // len(kind)
    expected = verify_pairs(first, second, same, fold)
    result = verify_pairs(first[kinds], second[kinds], same[kinds])
    assert figures(result) == pytest.approx(figures(expected), abs=2e-3)
    even = np.append(genuine[:250], impostor[:250])
    rounds = even.reshape(2, 10, 25).transpose(1, 0, 2).ravel()  # 25 of each kind, ten times
    expected = verify_pairs(first[rounds], second[rounds], same[rounds])
    assert figures(verify_pairs(first[even], second[even], same[even])) == figures(expected)


def test_folds_that_are_given_are_kept():
    first, second, same = noisy_pairs(400)
    fold = np.random.default_rng(0).permutation(np.repeat([3, 7, 30, 31], [80, 120, 90, 110]))
    distances, accuracies = pair_distances(first, second), []
    for each in (3, 7, 30, 31):
        train, test = fold != each, fold == each
        thresholds = between_all_distances(distances[train], same[train])
        best = thresholds[np.argmax([np.mean((distances[train] < t) == same[train]) for t in thresholds])]
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    result = verify_pairs(first, second, same, fold)
    assert figures(result)[:2] == pytest.approx((np.mean(accuracies), np.std(accuracies)))
    with pytest.raises(ValueError, match="1 folds of 400 pairs"):
        verify_pairs(first, second, same, np.zeros(400, dtype=int))
    with pytest.raises(ValueError, match="each of 400 needs one"):
        verify_pairs(first, second, same, fold[1:])


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
    assert perfect.threshold == pytest.approx(1)  # between the distances 0 and 2
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


def test_an_image_of_the_pairs_that_cannot_be_read_is_one_of_the_verification(tmp_path):
    def refusal(pairs):
        with pytest.raises(UserError) as caught:
            verify(torch.nn.Identity(), pairs, 32, 64, torch.device("cpu"), torch.float32)
        return str(caught.value)

    images = [png(each) for each in (0, 1, 0, 2, 1, 2, 0)] + [png(3)[:40]] + [png(0)] * 12
    write_pair_bin(tmp_path / "pairs.bin", images, np.arange(10) < 5)
    told = refusal(Pairs.from_bin(str(tmp_path / "pairs.bin")))
    assert f"item 7 of {tmp_path}/pairs.bin: not a readable image" in told and "write it without that pair" in told
    faces = Faces(table([0, 1]), "faces", "image", "label")
    faces.encoded = lambda rows: [b"no image" for _ in rows]
    pairs = Pairs(faces, "pairs", np.arange(2), np.zeros(20, int), np.ones(20, int), np.arange(20) < 10)
    told = refusal(pairs)
    assert "verification on pairs: row 0 (label 0) of faces: " in told and "`prepare_data.py inspect" in told
