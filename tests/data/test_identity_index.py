import errno
import multiprocessing
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffc_ds.data import identity_index
from ffc_ds.data.identity_index import IdentityIndex, index_of
from ffc_ds.errors import UserError
from tests.identities import index_labels, members
from tests.umask import more_private_than_the_umask

NAMES = st.integers(-5, 40) | st.integers(-(2**63), 2**63 - 1), st.text("ab", max_size=2) | st.text(max_size=3)


def grouped(labels):
    order = sorted(set(labels), key=lambda name: name.encode() if isinstance(name, str) else name)
    return {label: [row for row, other in enumerate(labels) if other == label] for label in order}


@given(st.one_of(st.lists(kind, min_size=1, max_size=200) for kind in NAMES))
def test_build_groups_rows_by_label(labels):
    index, expected = index_labels(labels), grouped(labels)
    assert members(index) == expected and index.names.to_pylist() == list(expected)
    assert index.identities == len(expected) and index.counts.tolist() == [len(rows) for rows in expected.values()]
    named = index.names.take(pa.array(index.image_identity(np.arange(len(labels)))))
    assert named.to_pylist() == [labels[row] for row in index.images]
    assert index.offsets.dtype == index.images.dtype == np.int64


@pytest.mark.parametrize("name", [int, "p{}".format])
def test_parts_of_the_labels_make_the_index_of_the_whole(name, monkeypatch):
    labels = [name(random.Random(row).randrange(40)) for row in range(500)]
    monkeypatch.setattr(identity_index, "PART", 7)  # names are merged many times
    index = IdentityIndex.build(lambda: (pa.array(labels[at : at + 13]) for at in range(0, 500, 13)))
    assert members(index) == grouped(labels)
    kept = np.arange(index.identities) % 3 > 0
    part = index.where(kept)
    expected = [(label, rows) for (label, rows), keep in zip(grouped(labels).items(), kept, strict=True) if keep]
    assert list(members(part).items()) == expected


def test_names_are_hashed_once_for_as_many_labels(monkeypatch):
    looked_up, index_in = [], pc.index_in

    def counted(labels, value_set):
        looked_up.append((len(labels), len(value_set)))
        return index_in(labels, value_set=value_set)

    monkeypatch.setattr(identity_index.pc, "index_in", counted)
    labels = [f"p{row * 7 % 50}" for row in range(500)]
    index = IdentityIndex.build(lambda: (pa.array(labels[at : at + 13]) for at in range(0, 500, 13)))
    assert members(index) == grouped(labels)
    assert looked_up == [(52, 50)] * 9 + [(32, 50)]


def test_the_digest_tells_people_and_counts_apart():
    digests = {index_labels(labels).digest() for labels in ([1, 2, 2], [1, 1, 2], [1, 3, 3], ["1", "2", "2"])}
    assert len(digests) == 4 and index_labels([2, 1, 2]).digest() in digests


def test_no_images_is_an_error():
    with pytest.raises(UserError, match="no images"):
        IdentityIndex.build(lambda: iter([]))


@given(st.lists(st.integers(0, 30), min_size=10, max_size=200), st.integers(0, 5))
def test_split_divides_the_identities(labels, seed):
    index = index_labels(np.array(labels))
    if index.identities < 4:
        return
    chosen = index.held_out(0.3, seed)
    train, held_out = index.where(~chosen), index.where(chosen)
    assert held_out.identities == round(0.3 * index.identities)
    assert not set(train.names.to_pylist()) & set(held_out.names.to_pylist())
    assert members(train) | members(held_out) == members(index)
    assert train.offsets[0] == held_out.offsets[0] == 0
    assert np.array_equal(index.held_out(0.3, seed), chosen)


def test_split_depends_on_the_seed():
    index = index_labels(np.arange(1000))
    first, second = (index.held_out(0.1, seed) for seed in (0, 1))
    assert (first & second).sum() < 50


@pytest.mark.parametrize("share", [0, 1, 1.5, 0.01])
def test_split_refuses_an_empty_part(share):
    with pytest.raises(UserError, match="at least one on each side"):
        index_labels(np.arange(10)).held_out(share, 0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 20))
def test_identities_with_few_images_are_left_out(labels, images):
    index = index_labels(np.array(labels))
    expected = {label: rows for label, rows in members(index).items() if len(rows) >= images}
    if not expected:
        with pytest.raises(UserError, match=f"no identity has {images} images, the largest number is"):
            index.with_images(images)
        return
    kept = index.where(index.with_images(images))
    assert members(kept) == expected and kept.identities == len(expected)
    assert (
        kept.image_identity(np.arange(len(kept.images))).tolist()
        == np.repeat(range(len(expected)), kept.counts).tolist()
    )


class Labelled:
    """What an index reads of `Faces`."""

    fingerprint = "abc"

    def __init__(self, labels):
        self._labels = pa.array(labels)

    def __len__(self):
        return len(self._labels)

    def labels(self):
        yield self._labels


@pytest.mark.parametrize("names", [[3, 7, 9], ["c", "g", "i"]])
def test_cache_is_written_once_and_memory_mapped(tmp_path, names):
    three, seven, nine = names
    first = index_of(Labelled([seven, three, seven, three, nine]), tmp_path / "cache")
    assert isinstance(first.images, np.memmap) and members(first) == {three: [1, 3], seven: [0, 2], nine: [4]}
    # Labels of the same length: had it been built again, these would show.
    second = index_of(Labelled([nine, three, seven, three, seven]), tmp_path / "cache")
    assert members(second) == members(first)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["identities-abc"]
    assert more_private_than_the_umask(tmp_path) == []  # others of a group may share the cache


def test_cache_of_another_dataset_is_refused(tmp_path):
    index_of(Labelled(range(5)), tmp_path)
    with pytest.raises(UserError, match="covers 5 images, the dataset has 6: delete"):
        index_of(Labelled(range(6)), tmp_path)
    for name in ("images.npy", "names.arrow"):
        (tmp_path / "identities-abc" / name).write_bytes(b"")
        with pytest.raises(UserError, match="cannot be read .*delete that folder"):
            index_of(Labelled(range(5)), tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=rf"cannot be written to {tmp_path}/file/cache \(Not a directory\): there must"):
        index_of(Labelled(range(5)), tmp_path / "file" / "cache")


def test_room_for_an_index_is_taken_before_it_is_filled(tmp_path, monkeypatch):
    array = identity_index._in_file(tmp_path, "images", 1 << 16)
    taken = (tmp_path / "images.npy").stat()
    assert 512 * taken.st_blocks >= taken.st_size > array.nbytes

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"cannot be written to .*cache \(No space left on device\): there must be room"
    ):
        index_of(Labelled(range(5)), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def build_in_a_race(folder, barrier):
    barrier.wait()
    index = index_of(Labelled(np.arange(50_000) % 1000), folder)
    assert index.identities == 1000


def test_racing_processes_agree_on_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=build_in_a_race, args=(tmp_path, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["identities-abc"]
