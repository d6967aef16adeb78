from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from ffc_ds.data import faces as faces_module
from ffc_ds.data.bounds import MAX_BYTES
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.reading import read_images
from ffc_ds.errors import UserError
from tests.identities import all_labels, members
from tests.tables import INTEGER, colours, png, table

LFW = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lfw"


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_row_selection_and_other_column_names_and_types():
    faces = Faces(
        table([7, 8, 9, 7]).select([3, 1]).rename_columns({"image": "png", "label": "who"}), "x", "png", "who"
    )
    assert all_labels(faces) == [7, 8] and colours(faces, [1, 0]) == [1, 3]
    plain = datasets.Dataset.from_dict({"jpg": [png(5), png(6)], "id": [0, 1]}).cast_column(
        "id", datasets.Value("uint16")
    )
    faces = Faces(plain, "x", "jpg", "id")
    assert all_labels(faces) == [0, 1] and colours(faces, [1, 0]) == [6, 5]


@pytest.mark.parametrize(
    "labels, feature, names",
    [
        ([5, 2**62, 5], datasets.Value("uint64"), [5, 2**62, 5]),
        (["bob", "ann", "bob"], datasets.Value("string"), ["bob", "ann", "bob"]),
        (["07", "7", " 7"], datasets.Value("large_string"), ["07", "7", " 7"]),  # three names as they are
        ([1, 0, 1], datasets.ClassLabel(names=["zoe", "ann"]), ["ann", "zoe", "ann"]),
    ],
)
def test_identities_are_called_what_the_set_calls_them(labels, feature, names):
    faces = Faces(table(labels, feature), "x", "image", "label")
    assert all_labels(faces) == names == [faces.label(row) for row in range(3)]
    assert faces.named == isinstance(names[0], str)
    assert members(IdentityIndex.build(faces.labels)) == {n: [i for i in range(3) if names[i] == n] for n in names}


@pytest.mark.parametrize(
    "labels, feature, message",
    [
        ([0.5, 1.0], datasets.Value("float32"), r"label column 'label' of x holds float32 \(row 0: 0.5\), but"),
        ([True, False], datasets.Value("bool"), r"holds bool \(row 0: True\), but identities are integers or texts"),
        ([[0], [1]], datasets.List(INTEGER), r"holds List \(row 0: \[0\]\), but identities"),
        ([0, -3, -1], INTEGER, r"the label -3 in row 1 is no identity: they start at 0 \(and 1 more\)"),
        ([0, None, None], INTEGER, r"the label in row 1 is missing \(and 1 more\); take such rows out"),
        (["ann", None], datasets.Value("string"), "the label in row 1 is missing;"),
        (["ann", " "], datasets.Value("string"), "the label ' ' in row 1 is empty;"),
        ([0, -1], datasets.ClassLabel(names=["a"]), "the label -1 in row 1 is no identity"),
        ([], INTEGER, "x is empty"),
    ],
)
def test_labels_that_cannot_be_used(labels, feature, message):
    with pytest.raises(UserError, match=message):
        all_labels(Faces(table(labels, feature), "x", "image", "label"))


def test_labels_beyond_int64_are_refused():
    huge = datasets.Dataset(pa.table({"image": [png(0)] * 2, "label": pa.array([0, 2**64 - 1], pa.uint64())}))
    with pytest.raises(UserError, match=f"the label {2**64 - 1} in row 1 is no identity"):
        all_labels(Faces(huge, "x", "image", "label"))


def test_a_row_is_named_by_its_number_in_the_selection(monkeypatch):
    monkeypatch.setattr(faces_module, "ROWS", 2)
    faces = Faces(table([0, 1, -1, 2]).select([3, 1, 0, 2]), "x", "image", "label")
    with pytest.raises(UserError, match="the label -1 in row 3 is"):
        all_labels(faces)


def test_image_column_must_hold_images():
    with pytest.raises(UserError, match="image column 'label' of x holds int64, not images"):
        Faces(table([0, 1]), "x", "label", "label")
    missing = datasets.Dataset.from_dict(
        {"image": [None], "label": [0]},
        features=datasets.Features(image=datasets.Image(), label=datasets.Value("int64")),
    )
    with pytest.raises(UserError, match=r"row 0 \(label 0\) of x: it has no image bytes"):
        read_images(Faces(missing, "x", "image", "label"), np.array([0]), 8)


def test_a_file_too_long_to_be_an_image_is_not_read(tmp_path):
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    images = [{"bytes": None, "path": str(path)}]
    features = datasets.Features(image=datasets.Image(decode=False), label=INTEGER)
    faces = Faces(datasets.Dataset.from_dict({"image": images, "label": [7]}, features), "x", "image", "label")
    with pytest.raises(UserError, match=rf"row 0 \(label 7\) of x: it is {MAX_BYTES + 1:,} bytes long"):
        read_images(faces, np.array([0]), 8)
