"""make_pairs against its promises."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_choice import make_pairs
from ffc_ds.evaluation.verifier import Pairs


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


def test_fewer_pairs_than_folds_are_refused_before_a_training_begins():
    offsets, images, _ = identity_index([3] * 20)
    index = SimpleNamespace(offsets=offsets, images=images)
    assert len(Pairs.from_identities(None, "split test", index, 10, 0).same) == 10
    with pytest.raises(UserError, match="split test holds 9 pairs, from which 10 folds cannot be made"):
        Pairs.from_identities(None, "split test", index, 9, 0)
