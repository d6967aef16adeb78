import io

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ffc_ds.data.decoding import decode
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.opening import open_set
from ffc_ds.data.reading import read_images
from ffc_ds.data.training_faces import JointFaces, TrainingFaces, joined
from ffc_ds.errors import UserError
from tests.identities import all_labels


def make_faces(name, labels, first_colour):
    """Image i shows the colour first_colour + i."""
    files = [io.BytesIO() for _ in labels]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (first_colour + i, 0, 0)).save(file, "PNG")
    images = [file.getvalue() for file in files]
    return Faces(datasets.Dataset.from_dict({"image": images, "label": labels}), name, "image", "label")


@pytest.fixture(scope="module")
def sets():
    labels = [7, 0, 7], [0, 3, 3, 1], [5]
    return [make_faces(f"set {name}", part, 50 * i) for i, (name, part) in enumerate(zip("abc", labels, strict=True))]


@pytest.fixture(scope="module")
def joint(sets):
    return JointFaces(sets, ["sets/a", "sets/b", "sets/c"])


def test_identities_of_two_sets_never_mix(joint):
    index = IdentityIndex.build(joint.labels)
    grouped = np.split(index.images, index.offsets[1:-1])
    assert [rows.tolist() for rows in grouped] == [[1], [0, 2], [3], [6], [4, 5], [7]]
    assert [joint.label(row) for row in range(8)] == all_labels(joint) and len(joint) == 8
    assert index.names.to_pylist() == ["a/0", "a/7", "b/0", "b/1", "b/3", "c/5"]
    assert TrainingFaces(joint, index).substitutes(4).tolist() == [5]


def test_sets_of_one_name_are_told_apart_by_their_paths(sets):
    assert JointFaces(sets[:2], ["one/faces", "two/faces"]).label(3) == "two/faces/0"


def test_a_set_that_is_listed_twice_is_refused(sets):
    with pytest.raises(UserError, match="./a is the same set as a"):
        JointFaces([*sets[:2], sets[0]], ["a", "b", "./a"])


@given(st.lists(st.integers(0, 7), max_size=20))
def test_images_come_from_their_set_in_the_order_asked_for(joint, rows):
    colours = [int(decode(one, 8)[0, 0, 0]) for one in joint.encoded(np.array(rows, dtype=np.int64))]
    assert colours == [[0, 1, 2, 50, 51, 52, 53, 100][row] for row in rows]


def test_messages_name_the_set(joint):
    assert joint.where(0) == "row 0 (label 7) of set a" and joint.where(6) == "row 3 (label 1) of set b"
    damaged = Faces(datasets.Dataset.from_dict({"image": [b"x"], "label": [4]}), "set d", "image", "label")
    with pytest.raises(UserError, match=r"^row 0 \(label 4\) of set d: not a readable image"):
        read_images(JointFaces([*joint.sets, damaged], [*"abcd"]), np.array([2, 8]), 8)


def test_the_fingerprint_is_that_of_the_sets_in_their_order(sets, joint):
    assert JointFaces(sets, [*"abc"]).fingerprint == joint.fingerprint
    others = JointFaces(sets[::-1], [*"cba"]), JointFaces(sets[:2], [*"ab"])
    fingerprints = {joint.fingerprint, *(other.fingerprint for other in others)}
    assert len(fingerprints) == 3


def test_one_name_or_several(tmp_path):
    for name, labels in (("one", [0, 1]), ("two", [0, 0, 2])):
        (tmp_path / name).mkdir()
        make_faces(name, labels, 0).dataset.to_parquet(tmp_path / name / "train.parquet")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")

    def labels(*names):
        sets = [open_set(name, "image", "label") for name in names]
        return all_labels(joined(sets, "train", alone=len(names) == 1))

    assert labels(one) == [0, 1]
    assert labels(one, two) == ["one/0", "one/1", "two/0", "two/0", "two/2"]
