import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffc_ds.data.identity_index import IdentityIndex, load_or_build
from ffc_ds.errors import UserError
from tests.umask import more_private_than_the_umask


def members(index):
    """{name: its images}, the slow way."""
    ends = zip(index.offsets[:-1], index.offsets[1:], strict=True)
    return {int(n): index.images[a:b].tolist() for n, (a, b) in zip(index.names, ends, strict=True)}


@given(st.lists(st.integers(-5, 40) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=200))
def test_build_groups_rows_by_label(labels):
    index = IdentityIndex.build(np.array(labels, dtype=np.int64))
    expected = {label: [row for row, other in enumerate(labels) if other == label] for label in sorted(set(labels))}
    assert members(index) == expected and index.names.tolist() == list(expected)
    assert index.identities == len(expected) and index.counts.tolist() == [len(rows) for rows in expected.values()]
    named = index.names[index.image_identity(np.arange(len(labels)))]
    assert named.tolist() == [labels[row] for row in index.images]
    assert {array.dtype for array in (index.offsets, index.images, index.names)} == {np.dtype(np.int64)}


def test_no_images_is_an_error():
    with pytest.raises(UserError, match="no images"):
        IdentityIndex.build(np.array([], dtype=np.int64))


@given(st.lists(st.integers(0, 30), min_size=10, max_size=200), st.integers(0, 5))
def test_split_divides_the_identities(labels, seed):
    index = IdentityIndex.build(np.array(labels))
    if index.identities < 4:
        return
    train, held_out = index.split(0.3, seed)
    assert held_out.identities == round(0.3 * index.identities)
    assert not set(train.names) & set(held_out.names)
    assert members(train) | members(held_out) == members(index)
    assert train.offsets[0] == held_out.offsets[0] == 0
    again = index.split(0.3, seed)[1]
    assert np.array_equal(again.images, held_out.images)


def test_split_depends_on_the_seed():
    index = IdentityIndex.build(np.arange(1000))
    first, second = (set(index.split(0.1, seed)[1].names.tolist()) for seed in (0, 1))
    assert len(first & second) < 50


@pytest.mark.parametrize("share", [0, 1, 1.5, 0.01])
def test_split_refuses_an_empty_part(share):
    with pytest.raises(UserError, match="at least one on each side"):
        IdentityIndex.build(np.arange(10)).split(share, 0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 20))
def test_identities_with_few_images_are_left_out(labels, images):
    index = IdentityIndex.build(np.array(labels))
    expected = {label: rows for label, rows in members(index).items() if len(rows) >= images}
    if not expected:
        with pytest.raises(UserError, match=f"no identity has {images} images, the largest number is"):
            index.at_least(images)
        return
    kept = index.at_least(images)
    assert members(kept) == expected and kept.identities == len(expected)
    assert (
        kept.image_identity(np.arange(len(kept.images))).tolist()
        == np.repeat(range(len(expected)), kept.counts).tolist()
    )


def test_cache_is_written_once_and_memory_mapped(tmp_path):
    labels = np.array([7, 3, 7, 3, 9])
    first = load_or_build(labels, "abc", tmp_path / "cache")
    assert isinstance(first.images, np.memmap) and members(first) == {3: [1, 3], 7: [0, 2], 9: [4]}
    # Labels of the same length: had it been built again, these would show.
    second = load_or_build(labels[::-1], "abc", tmp_path / "cache")
    assert members(second) == members(first)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["identity-index-abc"]
    assert more_private_than_the_umask(tmp_path) == []  # others of a group may share the cache


def test_cache_of_another_dataset_is_refused(tmp_path):
    load_or_build(np.arange(5), "abc", tmp_path)
    with pytest.raises(UserError, match="covers 5 images, the dataset has 6: delete"):
        load_or_build(np.arange(6), "abc", tmp_path)
    (tmp_path / "identity-index-abc" / "images.npy").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read .*delete that folder"):
        load_or_build(np.arange(5), "abc", tmp_path)


def build_in_a_race(folder, barrier):
    barrier.wait()
    index = load_or_build(np.arange(50_000) % 1000, "abc", folder)
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
    assert [path.name for path in tmp_path.iterdir()] == ["identity-index-abc"]
