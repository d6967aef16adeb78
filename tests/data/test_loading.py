import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ffc_ds.data.decoding import decode
from ffc_ds.data.loading import Faces, has_split, load_faces
from ffc_ds.errors import UserError

LFW = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lfw"
INTEGER = datasets.Value("int64")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(labels, label_feature=INTEGER):
    """Row i shows the colour i."""
    images = [{"bytes": png(i), "path": None} for i in range(len(labels))]
    features = datasets.Features(image=datasets.Image(), label=label_feature)
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def colours(faces, rows):
    return [int(decode(encoded, 8)[0, 0, 0]) for encoded in faces.encoded(np.array(rows))]


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    table([4, 4, 0, 9, 0]).to_parquet(folder / "train-00000-of-00001.parquet")
    table([1, 2, 3, 4, 5]).to_parquet(folder / "eval-00000-of-00001.parquet")
    return str(folder)


def test_parquet_folder(parquet):
    faces = load_faces(parquet, "train", "image", "label")
    assert len(faces) == 5 and faces.labels.dtype == np.int64 and faces.labels.tolist() == [4, 4, 0, 9, 0]
    assert colours(faces, [3, 0, 3, 4]) == [3, 0, 3, 4]
    assert load_faces(parquet, "train", "image", "label").fingerprint == faces.fingerprint
    assert load_faces(parquet, "test", "image", "label").fingerprint != faces.fingerprint
    assert has_split(parquet, "test") and not has_split(parquet, "validation")


def test_fingerprint_is_the_same_in_another_process(parquet, tmp_path):
    script = """if True:
        import sys
        from ffc_ds.data.loading import load_faces
        print(load_faces(sys.argv[1], "train", "image", "label").fingerprint)
    """
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "other cache"), "RANK": "1"}
    result = subprocess.run([sys.executable, "-c", script, parquet], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == load_faces(parquet, "train", "image", "label").fingerprint
    assert "Generating" not in result.stderr  # no progress bar but on rank 0


def test_image_folder_reads_files(tmp_path):
    for i, identity in enumerate(["ann", "ann", "bob"]):
        (tmp_path / "faces" / identity).mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / identity / f"{i}.png").write_bytes(png(i))
    faces = load_faces(str(tmp_path / "faces"), "train", "image", "label")
    assert faces.labels.tolist() == [0, 0, 1] and colours(faces, [2, 0]) == [2, 0]
    (tmp_path / "faces" / "bob" / "2.png").unlink()
    with pytest.raises(UserError, match=r"row 2 \(label 1\) of split 'train' of .* no readable file .*2\.png"):
        faces.encoded(np.array([2]))


def test_saved_to_disk(tmp_path):
    dataset = table([1, 2, 3, 4, 5]).select([4, 2, 0])
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, dev=dataset).save_to_disk(tmp_path / "both")
    for name, split in (("one", "train"), ("both", "dev")):
        faces = load_faces(str(tmp_path / name), split, "image", "label")
        assert faces.labels.tolist() == [5, 3, 1] and colours(faces, [0, 1, 2]) == [4, 2, 0]
    assert has_split(str(tmp_path / "both"), "dev") and not has_split(str(tmp_path / "one"), "dev")


def test_saved_split_keeps_its_name(tmp_path):
    datasets.Dataset.from_dict({"image": [png(0)], "label": [0]}, split="dev").save_to_disk(tmp_path / "one")
    assert has_split(str(tmp_path / "one"), "dev") and not has_split(str(tmp_path / "one"), "train")


def test_row_selection_and_other_column_names_and_types():
    faces = Faces(
        table([7, 8, 9, 7]).select([3, 1]).rename_columns({"image": "png", "label": "who"}), "x", "png", "who"
    )
    assert faces.labels.tolist() == [7, 8] and colours(faces, [1, 0]) == [1, 3]
    plain = datasets.Dataset.from_dict({"jpg": [png(5), png(6)], "id": [0, 1]}).cast_column(
        "id", datasets.Value("uint16")
    )
    faces = Faces(plain, "x", "jpg", "id")
    assert faces.labels.tolist() == [0, 1] and colours(faces, [1, 0]) == [6, 5]
    named = table([1, 0], label_feature=datasets.ClassLabel(names=["a", "b"]))
    assert Faces(named, "x", "image", "label").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels, feature, message",
    [
        (["ann", "bob"], datasets.Value("string"), "label column 'label' of x holds string, not integers"),
        ([0.0, 1.0], datasets.Value("float32"), "holds float32, not integers"),
        ([True, False], datasets.Value("bool"), "holds bool, not integers"),
        ([[0], [1]], datasets.List(datasets.Value("int64")), "holds List, not integers"),
        ([0, -3, 2], datasets.Value("int64"), "holds -3 in row 1, but labels start at 0"),
        ([0, None, None], datasets.Value("int64"), "has 2 missing values"),
        ([], datasets.Value("int64"), "x is empty"),
    ],
)
def test_labels_that_cannot_be_used(labels, feature, message):
    with pytest.raises(UserError, match=message):
        Faces(table(labels, label_feature=feature), "x", "image", "label")


def test_labels_beyond_int64_are_refused():
    huge = datasets.Dataset(pa.table({"image": [png(0)] * 2, "label": pa.array([0, 2**64 - 1], pa.uint64())}))
    with pytest.raises(UserError, match="labels start at 0"):
        Faces(huge, "x", "image", "label")


def test_image_column_must_hold_images():
    with pytest.raises(UserError, match="image column 'label' of x holds int64, not images"):
        Faces(table([0, 1]), "x", "label", "label")
    missing = datasets.Dataset.from_dict(
        {"image": [None], "label": [0]},
        features=datasets.Features(image=datasets.Image(), label=datasets.Value("int64")),
    )
    with pytest.raises(UserError, match=r"row 0 \(label 0\) of x has no image bytes"):
        Faces(missing, "x", "image", "label").encoded(np.array([0]))


@pytest.mark.parametrize(
    "split, image, label, message",
    [
        ("trian", "image", "label", "has no split 'trian', it has train, test; did you mean 'train'?"),
        (
            "train",
            "imag",
            "label",
            "no column for the images called 'imag', it has image, label; did you mean 'image'?",
        ),
        ("train", "image", "identity", "no column for the labels called 'identity', it has image, label"),
    ],
)
def test_names_that_do_not_exist(parquet, split, image, label, message):
    with pytest.raises(UserError) as caught:
        load_faces(parquet, split, image, label)
    assert message in str(caught.value) and parquet in str(caught.value)


def test_paths_that_are_no_dataset(tmp_path):
    (tmp_path / "file.parquet").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 this is none")
    for name, message in {
        "nowhere": "no dataset folder",
        "file.parquet": "is a file: give the folder",
        "empty": "cannot open dataset",
        "broken": "cannot open dataset",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            load_faces(str(tmp_path / name), "train", "image", "label")
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_an_empty_parquet_file_is_an_empty_dataset(tmp_path):
    table([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="has an empty split"):
        load_faces(str(tmp_path), "train", "image", "label")


def test_generated_identities():
    faces = load_faces("generated:2:16", "test", "image", "label")
    assert set(faces.labels) == {0, 1} and decode(faces.encoded(np.array([0]))[0], 16).shape == (16, 16, 3)
    assert has_split("generated:2:16", "train") and not has_split("generated", "dev")
    with pytest.raises(UserError, match="no split 'dev', it has train, test"):
        load_faces("generated:2:16", "dev", "image", "label")


def test_unreachable_hub_is_noticed_at_once(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no folder nobody/nothing here, and the hub cannot be reached"):
        has_split("nobody/nothing", "train")
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.skipif(not LFW.is_dir(), reason="the shared LFW folder is not here")
def test_real_faces():
    faces = load_faces(str(LFW), "train", "image", "label")
    assert len(faces) == len(faces.labels) == 10716
    assert all(encoded[:2] == b"\xff\xd8" for encoded in faces.encoded(np.arange(0, 10716, 500)))
