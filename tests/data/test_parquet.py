"""Parquet files are converted once, by several threads, and mapped into memory afterwards."""

import random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ffc_ds.data import content, parquet
from ffc_ds.data.opening import load_faces
from ffc_ds.errors import UserError
from tests.identities import all_labels

IMAGE = {"bytes": b"x", "path": None}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "faces").mkdir()
    return tmp_path / "faces"


def write(path, labels, **columns):
    images = [{"bytes": b"image %d" % label, "path": None} for label in labels]
    pq.write_table(pa.table({"image": images, "label": labels} | columns), path, row_group_size=3)


def opened(folder, split="train"):
    return load_faces(str(folder), split, "image", "label")


def test_rows_come_in_the_order_of_the_files(folder, monkeypatch):
    monkeypatch.setattr(parquet, "PART_ROWS", 4)
    labels = [list(range(at, at + 10)) for at in (0, 10, 20)]
    for number, part in enumerate(labels):
        write(folder / f"train-{number}-of-3.parquet", part, more=["x"] * 10)
    write(folder / "test-0-of-1.parquet", [7])
    faces = opened(folder)
    assert all_labels(faces) == sum(labels, []) and faces.encoded([29, 0]) == [b"image 29", b"image 0"]
    assert faces.dataset.column_names == ["image", "label"]  # what nobody asked for is not copied
    assert all_labels(opened(folder, "test")) == [7]


def test_only_new_files_are_converted(folder, tmp_path, monkeypatch):
    write(folder / "train-0.parquet", [0, 1])
    opened(folder)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    write(folder / "train-1.parquet", [2])
    converted = []
    monkeypatch.setattr(parquet, "_convert_all", lambda missing: converted.extend(missing.items()))
    with pytest.raises(UserError):
        opened(folder)
    ((place, (file, schema)),) = converted
    assert file == str(folder / "train-1.parquet")
    parquet.convert(file, schema, place)
    assert all_labels(opened(folder)) == [0, 1, 2]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_large_parts_become_few_record_batches(folder, tmp_path):
    write(folder / "train.parquet", list(range(1000)))
    opened(folder)
    (place,) = (tmp_path / "cache").rglob("*.arrow")
    with pa.memory_map(str(place)) as file:
        assert len(list(pa.ipc.open_stream(file))) == 1  # of 334 row groups


@pytest.mark.parametrize("row_group", [512, 5120])
def test_a_file_is_never_in_memory_as_a_whole(folder, monkeypatch, row_group):
    images = [{"bytes": random.Random(each).randbytes(6000), "path": None} for each in range(5120)]
    source = folder / "train.parquet"
    table = pa.table({"image": images, "label": range(5120)})
    pq.write_table(table, source, row_group_size=row_group, compression="none", data_page_size=1 << 18)
    schema, size, held, cast = table.schema, table.nbytes, [], parquet.table_cast
    del table
    before = pa.total_allocated_bytes()

    def noted(part, schema):
        held.append(pa.total_allocated_bytes() - before)
        return cast(part, schema)

    monkeypatch.setattr(parquet, "table_cast", noted)
    monkeypatch.setattr(parquet, "PART_BYTES", 1)
    parquet.convert(str(source), schema, folder / "copy.arrow")
    assert len(held) == 5 and max(held) < size


def test_a_file_that_lacks_a_column_is_named(folder):
    for number in range(3):
        write(folder / f"train-{number}.parquet", [0])
    pq.write_table(pa.table({"image": [b"x"], "id": [1]}), folder / "train-1.parquet")
    with pytest.raises(UserError, match=r"train-1.parquet lacks the column 'label', which .*train-0.parquet has, and"):
        opened(folder)


def test_a_file_that_is_none_is_named(folder):
    write(folder / "train-0.parquet", [0])
    whole = (folder / "train-0.parquet").read_bytes()
    (folder / "train-1.parquet").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="train-1.parquet is no whole parquet file"):
        opened(folder)


def test_images_of_another_kind_in_one_file_are_refused(folder):
    write(folder / "train-0.parquet", [0])
    pq.write_table(pa.table({"image": [7], "label": [0]}), folder / "train-1.parquet")
    with pytest.raises(UserError, match="train-1.parquet cannot be copied .*of the kinds that the other files"):
        opened(folder)


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ([1], ["01"], "integers in .*0.parquet and texts in .*1.parquet"),
        (["1"], [2.5], "texts in .*0.parquet and double in"),
        ([0], [True], "integers in .*0.parquet and bool in"),
    ],
)
def test_labels_of_two_kinds_are_refused(folder, first, second, kinds):
    for number, labels in enumerate((first, second)):
        pq.write_table(pa.table({"image": [IMAGE], "label": labels}), folder / f"train-{number}.parquet")
    with pytest.raises(UserError, match=f"'label' holds {kinds}"):
        opened(folder)


def test_all_kinds_of_texts_are_labels_together(folder):
    kinds = pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())
    for number, kind in enumerate(kinds):
        labels = pa.array([f"person {number}"]).cast(kind)
        pq.write_table(pa.table({"image": [IMAGE], "label": labels}), folder / f"train-{number}.parquet")
    assert all_labels(opened(folder)) == ["person 0", "person 1", "person 2"]


def test_integers_of_several_widths_are_labels_all_the_same(folder):
    write(folder / "train-0.parquet", [1, 2])
    table = pq.read_table(folder / "train-0.parquet").set_column(1, "label", pa.array([1, 2], pa.int8()))
    pq.write_table(table, folder / "train-0.parquet")
    write(folder / "train-1.parquet", [2**40])
    assert all_labels(opened(folder)) == [1, 2, 2**40]


@pytest.mark.parametrize("others", [datasets.ClassLabel(names=["bob", "ann"]), datasets.Value("int64")])
def test_files_that_number_their_people_differently_are_refused(folder, others):
    ann_first = datasets.ClassLabel(names=["ann", "bob"])
    for number, kind in enumerate((ann_first, ann_first, others)):
        features = datasets.Features(image=datasets.Image(), label=kind)
        rows = {"image": [{"bytes": b"x", "path": None}], "label": [0]}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"train-{number}.parquet")
    with pytest.raises(UserError, match=r"train-0.parquet and .*train-2.parquet do not have the same classes"):
        opened(folder)
    (folder / "train-2.parquet").unlink()
    assert all_labels(opened(folder)) == ["ann", "ann"]


def test_two_columns_of_one_name_are_refused(folder):
    columns = [pa.array([b"x"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.table(columns, ["image", "label", "label"]), folder / "train.parquet")
    with pytest.raises(UserError, match="train.parquet has several columns called label: rename"):
        opened(folder)


@pytest.mark.parametrize("column", ["label", "person.id"])
def test_two_labels_that_change_places_are_noticed_in_a_file_of_any_size(folder, monkeypatch, column):
    monkeypatch.setattr(content, "SMALL", 0)  # as if it were too large to be read whole
    images = [{"bytes": random.Random(each).randbytes(2000), "path": None} for each in range(200)]

    def written(labels, **how):
        for part, rows in enumerate((slice(0, 100), slice(100, 200))):
            table = pa.table({"image": images[rows], column: labels[rows]})
            pq.write_table(table, folder / f"train-{part}.parquet", compression="none", row_group_size=30, **how)
        sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
        faces = load_faces(str(folder), "train", "image", column)
        assert all_labels(faces) == labels
        return sizes, faces.fingerprint

    for how in ({"use_dictionary": [column]}, {"use_dictionary": False}):
        labels = [each % 50 for each in range(200)]
        before = written(labels, **how)
        labels[140], labels[141] = labels[141], labels[140]
        after = written(labels, **how)
        assert before[0] == after[0] and before[1] != after[1]
