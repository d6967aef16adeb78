from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.sampler import Sampler
from ffc_ds.errors import UserError

FIELDS = ("images", "identities", "flips", "shifts")


def make_index(identities=37, seed=0):
    """A long tail: a third of the identities have one image; labels with gaps, rows in no order."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities) * 3 + 5, [1 + i % 3 * (i % 5) for i in range(identities)])
    return IdentityIndex.build(random.permutation(labels))


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
    assert plan.shifts.shape == (2, batch_size // 2, 2) and plan.shifts.dtype == np.uint8
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
    index = IdentityIndex.build(np.zeros(4, dtype=np.int64))
    sampler = Sampler(index, 40, "id")
    pairs = Counter(pair for step in range(60) for pair in zip(*sampler.plan(step).images.tolist(), strict=True))
    assert len(pairs) == 12 and min(pairs.values()) > 60


def test_flips_and_shifts_are_fair_and_independent():
    index = IdentityIndex.build(np.arange(3000) // 3)
    plan = Sampler(index, 40_000, seed=5).plan(2)
    bits = np.stack([*plan.flips, *(plan.shifts > 127).transpose(0, 2, 1).reshape(4, -1)]).astype(float)
    assert np.all(np.abs(bits.mean(axis=1) - 0.5) < 0.02)
    assert np.all(np.abs(np.corrcoef(bits) - np.eye(6)) < 0.04)
    assert np.all(np.bincount(plan.shifts.ravel(), minlength=256) > 200)


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
    other = Sampler(index, 24, seed=10).plan(0)
    assert not np.array_equal(other.images, forward[0].images)


def test_id_share_of_the_paper():
    # b identities and b images per rank: b id rows and b / 2 instance rows in each view.
    sampler = Sampler(make_index(), 192)
    assert (sampler.id_rows, sampler.instance_rows) == (64, 32)


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
    ],
)
def test_errors_of_use(arguments, message):
    with pytest.raises(UserError, match=message):
        Sampler(make_index(), *arguments)
