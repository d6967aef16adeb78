from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffc_ds.data.randomness import mix
from ffc_ds.data.sampler import ID_IMAGES, ID_VIEWS, INSTANCE_VIEWS, RANDOM_BYTES, Sampler
from ffc_ds.errors import UserError
from tests.identities import index_labels

FIELDS = ("images", "identities", "flips", "bytes")


def make_index(identities=37, seed=0):
    """A long tail: a third of the identities have one image; labels with gaps, rows in no order."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities) * 3 + 5, [1 + i % 3 * (i % 5) for i in range(identities)])
    return index_labels(random.permutation(labels))


def rows_of_kind(sampler, array, instance):
    """The rows of one kind in the order of their positions: the id rows are those of the loader's first part."""
    kinds = sampler._order >= sampler.id_rows
    return array[:, kinds == instance]


@given(
    batch_size=st.integers(1, 60).map(lambda half: 2 * half),
    loader=st.sampled_from(["dual", "id", "instance"]),
    identities=st.integers(1, 60),
    step=st.integers(0, 10**6),
)
def test_rows_are_consistent(batch_size, loader, identities, step):
    index = make_index(identities)
    sampler = Sampler(index, batch_size, loader, seed=3)
    plan = sampler.plan(step)
    assert plan.images.shape == plan.identities.shape == plan.flips.shape == (2, batch_size // 2)
    assert plan.bytes.shape == (2, batch_size // 2, RANDOM_BYTES) and plan.bytes.dtype == np.uint8
    identity_of = np.empty(len(index.images), np.int64)
    identity_of[index.images] = np.repeat(np.arange(identities), index.counts)
    assert np.array_equal(plan.identities, identity_of[plan.images])

    images, labels, flips = (rows_of_kind(sampler, getattr(plan, f), False) for f in FIELDS[:3])
    single = index.counts[labels[0]] == 1
    assert np.array_equal(labels[0], labels[1])
    assert np.array_equal(images[0] == images[1], single)
    assert np.all((flips[0] != flips[1])[single])


def epochs_of(values, length):
    return [Counter(values[start : start + length].tolist()) for start in range(0, len(values) - length + 1, length)]


@pytest.mark.parametrize("loader", ["dual", "id", "instance"])
@pytest.mark.parametrize("batch_size", [6, 50, 500])
def test_every_identity_and_every_image_once_per_epoch(batch_size, loader):
    index = make_index()
    sampler = Sampler(index, batch_size, loader, seed=1)
    plans = [sampler.plan(step) for step in range(3 + 1000 // batch_size)]
    ids = np.concatenate([rows_of_kind(sampler, plan.identities, False)[0] for plan in plans])
    instances = np.concatenate([rows_of_kind(sampler, plan.images, True).ravel() for plan in plans])
    for seen, everything in ((ids, np.arange(37)), (instances, index.images)):
        epochs = epochs_of(seen, len(everything))
        assert len(epochs) >= 2 or len(seen) == 0
        assert all(epoch == Counter(everything.tolist()) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in its own order


def test_id_rows_use_every_pair_of_images():
    index = index_labels(np.zeros(4, dtype=np.int64))
    sampler = Sampler(index, 40, "id")
    pairs = Counter(pair for step in range(60) for pair in zip(*sampler.plan(step).images.tolist(), strict=True))
    assert len(pairs) == 12 and min(pairs.values()) > 60


@given(
    images_per_identity=st.sampled_from([2, 4, 6, 10]),
    size=st.integers(1, 40),
    loader=st.sampled_from(["dual", "id", "instance"]),
    identities=st.integers(1, 60),
    step=st.integers(0, 10**6),
)
def test_images_of_an_identity(images_per_identity, size, loader, identities, step):
    index = make_index(identities)
    batch_size = images_per_identity * size if loader == "id" else 2 * size
    sampler = Sampler(index, batch_size, loader, seed=3, images_per_identity=images_per_identity)
    plan, rows_each = sampler.plan(step), images_per_identity // 2
    assert len(np.unique(plan.identities)) <= sampler.most_identities(sampler.rows)
    # Each identity's rows lie together; the first part of the loader's rows are those of the ids.
    assert sampler.id_rows % rows_each == 0
    starts = np.flatnonzero(np.isin(sampler._order, range(0, sampler.id_rows, rows_each)))
    assert len(starts) == sampler.id_rows // rows_each
    for start in starts:
        rows = slice(start, start + rows_each)
        identity = plan.identities[0, start]
        assert np.all(plan.identities[:, rows] == identity)
        copies = {}  # image -> its mirrorings, in the order of the rows
        for image, flip in zip(plan.images[:, rows].T.ravel(), plan.flips[:, rows].T.ravel(), strict=True):
            copies.setdefault(int(image), []).append(bool(flip))
        assert len(copies) == min(images_per_identity, index.counts[identity])
        numbers = [len(flips) for flips in copies.values()]
        assert max(numbers) - min(numbers) <= 1
        assert all(a != b for flips in copies.values() for a, b in zip(flips, flips[1:], strict=False))


@pytest.mark.parametrize("loader", ["dual", "id"])
def test_two_images_are_one_and_one_of_the_others(loader):
    # The plans of runs that were made before more than two images could be asked for.
    index = make_index()
    sampler = Sampler(index, 50, loader, seed=2)
    for step in (0, 7, 10**6):
        images, labels, flips = (rows_of_kind(sampler, getattr(sampler.plan(step), f), False) for f in FIELDS[:3])
        for row, identity in enumerate(labels[0]):
            own = index.images[index.offsets[identity] : index.offsets[identity + 1]]
            bits = [int(mix(2, ID_IMAGES, view, step * sampler.id_rows + row)) for view in (0, 1)]
            first = bits[0] % len(own)
            second = (first + 1 + bits[1] % max(len(own) - 1, 1)) % len(own)
            assert images[:, row].tolist() == [own[first], own[second]]
            mirrored = [int(mix(2, ID_VIEWS, view, step * sampler.id_rows + row)) % 2 == 1 for view in (0, 1)]
            assert flips[:, row].tolist() == [mirrored[0], mirrored[1] if len(own) > 1 else not mirrored[0]]


def test_every_set_of_images_of_an_identity():
    index = index_labels(np.zeros(6, dtype=np.int64))
    sampler = Sampler(index, 400, "id", images_per_identity=4)
    views = [view for step in range(3) for view in sampler.plan(step).images.T.reshape(-1, 4).tolist()]
    assert {tuple(sorted(four[:2])) for four in views} == {(a, b) for b in range(6) for a in range(b)}
    assert np.all(np.abs(np.bincount(np.ravel(views)) / 200 - 1) < 0.1)
    assert len({tuple(sorted(four)) for four in views}) == 15


def test_flips_and_random_bytes_are_fair_and_independent():
    index = index_labels(np.arange(3000) // 3)
    plan = Sampler(index, 40_000, seed=5).plan(2)
    bits = np.stack([*plan.flips, *(plan.bytes > 127).transpose(0, 2, 1).reshape(2 * RANDOM_BYTES, -1)]).astype(float)
    assert np.all(np.abs(bits.mean(axis=1) - 0.5) < 0.02)
    assert np.all(np.abs(np.corrcoef(bits) - np.eye(len(bits))) < 0.04)
    assert all(np.bincount(each, minlength=256).min() > 90 for each in plan.bytes.reshape(-1, RANDOM_BYTES).T)


@pytest.mark.parametrize(("instance", "stream"), [(False, ID_VIEWS), (True, INSTANCE_VIEWS)])
def test_the_first_random_bytes_are_those_of_runs_that_only_shifted(instance, stream):
    sampler = Sampler(make_index(), 50, seed=2)
    for step in (0, 3, 10**6):
        found = rows_of_kind(sampler, sampler.plan(step).bytes, instance)
        number = found.shape[1]
        for view in (0, 1):
            for row in range(number):
                position = step * number + row if not instance else (2 * step + view) * number + row
                bits = int(mix(2, stream, view, position))
                assert found[view, row, :2].tolist() == [bits >> 8 & 255, bits >> 16 & 255]


@given(batch_size=st.integers(1, 300).map(lambda half: 2 * half), share=st.floats(0, 1), data=st.data())
def test_any_contiguous_part_holds_the_same_mix(batch_size, share, data):
    sampler = Sampler(make_index(), batch_size, "dual", share)
    is_id = sampler._order < sampler.id_rows
    start = data.draw(st.integers(0, sampler.rows))
    stop = data.draw(st.integers(start, sampler.rows))
    assert abs(is_id[start:stop].sum() - (stop - start) * sampler.id_rows / sampler.rows) <= 1


def test_plan_is_pure():
    index = make_index()
    forward = [Sampler(index, 24, seed=9).plan(step) for step in range(10)]
    sampler = Sampler(index, 24, seed=9)
    backward = [sampler.plan(step) for step in reversed(range(10))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert all(np.array_equal(getattr(a, field), getattr(b, field)) for field in FIELDS)
    at_once = sampler.plans(np.array([7, 0, 1]))
    for step, plan in zip((7, 0, 1), at_once, strict=True):
        assert all(np.array_equal(getattr(plan, field), getattr(forward[step], field)) for field in FIELDS)
    other = Sampler(index, 24, seed=10).plan(0)
    assert not np.array_equal(other.images, forward[0].images)


def test_id_share_of_the_paper():
    # b identities and b images per rank: b id rows and b / 2 instance rows in each view.
    sampler = Sampler(make_index(), 192)
    assert (sampler.id_rows, sampler.instance_rows) == (64, 32)
    sampler = Sampler(make_index(), 192, images_per_identity=12)  # in whole identities, six rows each
    assert (sampler.id_rows, sampler.instance_rows) == (66, 30)
    sampler = Sampler(make_index(), 12, id_share=1.0, images_per_identity=8)  # no room for a second one
    assert (sampler.id_rows, sampler.instance_rows) == (4, 2)


def test_steps_for():
    sampler = Sampler(make_index(), 10)
    images = len(sampler.index.images)
    assert sampler.steps_for(4) == round(4 * images / 10) and sampler.steps_for(1e-6) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((7,), "batch size 7 must be even"),
        ((0,), "batch size 0"),
        ((8, "both"), "unknown loader 'both': choose one of dual, id, instance"),
        ((8, "dual", 1.5), "id share 1.5"),
        ((8, "dual", 0.5, 0, 3), "3 images per identity must be an even number"),
        ((14, "id", 0.5, 0, 4), "14 is no multiple of 4 images per identity: choose 12 or 16$"),
        ((2, "id", 0.5, 0, 4), "2 is no multiple of 4 images per identity: choose 4$"),
    ],
)
def test_errors_of_use(arguments, message):
    with pytest.raises(UserError, match=message):
        Sampler(make_index(), *arguments)
