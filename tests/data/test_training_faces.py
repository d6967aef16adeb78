import io

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ffc_ds.data.decoding import decode
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.loading import Faces
from ffc_ds.data.reading import read_images
from ffc_ds.data.training_faces import JointFaces, load_sets
from ffc_ds.errors import UserError


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
    return JointFaces(sets)


def test_identities_of_two_sets_never_mix(joint):
    index = IdentityIndex.build(joint.labels)
    grouped = np.split(index.images, index.offsets[1:-1])
    assert [rows.tolist() for rows in grouped] == [[1], [0, 2], [3], [6], [4, 5], [7]]
    assert [joint.label(row) for row in range(8)] == joint.labels.tolist() and len(joint) == 8


@given(st.lists(st.integers(0, 7), max_size=20))
def test_images_come_from_their_set_in_the_order_asked_for(joint, rows):
    colours = [int(decode(one, 8)[0, 0, 0]) for one in joint.encoded(np.array(rows, dtype=np.int64))]
    assert colours == [[0, 1, 2, 50, 51, 52, 53, 100][row] for row in rows]


def test_messages_name_the_set(joint):
    assert joint.where(0) == "row 0 (label 7) of set a" and joint.where(6) == "row 3 (label 1) of set b"
    damaged = Faces(datasets.Dataset.from_dict({"image": [b"x"], "label": [4]}), "set d", "image", "label")
    with pytest.raises(UserError, match=r"^row 0 \(label 4\) of set d: not a readable image"):
        read_images(JointFaces([*joint.sets, damaged]), np.array([2, 8]), 8)


def test_the_fingerprint_is_that_of_the_sets_in_their_order(sets, joint):
    assert JointFaces(sets).fingerprint == joint.fingerprint
    fingerprints = {joint.fingerprint, JointFaces(sets[::-1]).fingerprint, JointFaces(sets[:2]).fingerprint}
    assert len(fingerprints) == 3


def test_labels_too_large_to_be_joined_are_refused():
    huge = make_faces("set e", [2**62], 0)
    assert JointFaces([make_faces("set f", [2**61], 0), huge]).labels.tolist() == [2**61, 2**61 + 1 + 2**62]
    with pytest.raises(UserError, match=r"labels of set e \+ set e are too large"):
        JointFaces([huge, huge])


def test_one_name_or_several(tmp_path):
    for name, labels in (("one", [0, 1]), ("two", [0, 0, 2])):
        (tmp_path / name).mkdir()
        make_faces(name, labels, 0).dataset.to_parquet(tmp_path / name / "train.parquet")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert load_sets(one, "train", "image", "label").labels.tolist() == [0, 1]
    assert load_sets([one, two], "train", "image", "label").labels.tolist() == [0, 1, 2, 2, 4]
    with pytest.raises(UserError, match=r"two has no split 'dev'|one has no split 'dev'"):
        load_sets([one, two], "dev", "image", "label")
    with pytest.raises(UserError, match="no dataset folder .*three"):
        load_sets([one, str(tmp_path / "three")], "train", "image", "label")
