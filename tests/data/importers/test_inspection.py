from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ffc_ds.data.importers import inspection
from ffc_ds.data.importers.inspection import examine, inspect, long_tail
from ffc_ds.errors import UserError
from launch.prepare_data import main
from tests.data.importers.formats import pictures


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder, files, split="train"):
    """files: a list of (image, label) for each."""
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(files):
        images = [{"bytes": image, "path": None} for image, _ in content]
        columns = {"image": images, "label": pa.array([label for _, label in content], pa.int32())}
        pq.write_table(
            pa.table(columns), folder / f"{split}-{number:05d}-of-{len(files):05d}.parquet", row_group_size=4
        )
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    a, b, c, *more = pictures(12)
    content = [(image, 10**6 * (i // 4)) for i, image in enumerate(more)]  # 3 identities with 4, 4 and 1 images
    content += [(a, 7), (a, 7), (b, 7), (b, 8), (b, 8), (c, 7), (c, 8), (c, 9)]
    content += [(more[0][:-5], 5), (b"", 5), (None, 5), (None, 5), (None, 6)]
    write(tmp_path / "faces", [[(a, 1)]], "test")
    return write(tmp_path / "faces", [content[:6], content[6:7], content[7:]]), content


@pytest.mark.parametrize("check", ["header", "full"])
def test_everything_is_counted(folder, check):
    folder, content = folder
    found = examine(folder, "train", check, workers=2)
    identities = Counter(label for _, label in content)
    assert sorted(found.images_per_identity) == sorted(identities.values())
    assert found.images == 22 and found.identities == 8
    images = {}
    for image, label in content:
        if image is not None:  # what cannot be read is like nothing
            images.setdefault(image, []).append(label)
    assert found.repeated == sum(len(labels) - 1 for labels in images.values()) == 5
    assert found.shared == sum(len(set(labels)) - 1 for labels in images.values()) == 3
    labels = {17: 5, 18: 5, 19: 5, 20: 5, 21: 6}
    assert [key for key, _ in found.broken] == [
        f"row {i} (label {n}) of split 'train' of {folder}" for i, n in labels.items()
    ]
    assert found.broken[2].reason.startswith("it has no image bytes and no file")


def test_images_of_too_many_pixels_are_broken(tmp_path):
    folder = write(tmp_path / "faces", [[(image, 1) for image in pictures(5)]])
    found = examine(str(folder), "train", "header", 1, max_megapixels=23 * 20 / 1e6)
    reason = "its header announces 20 x 24 pixels, and max_megapixels allows 0.00046 million"
    assert found.broken == [(f"row 4 (label 1) of split 'train' of {folder}", reason)]


def test_the_report_and_the_figure(folder, capsys):
    inspect(folder[0], workers=1)
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:3] == ["images 22", "identities 8", "per identity mean 2.8, median 3.5, most 4 images"]
    assert lines[3:6] == ["1 3 " + "#" * 30, "2-3 1 " + "#" * 10, "4-7 4 " + "#" * 40]
    assert "broken 5" in lines and f"row 18 (label 5) of split 'train' of {folder[0]}: not a readable image of 0" in out
    assert "repeated 5 images have the bytes of another, 3 of them under another identity" in lines
    with Image.open(f"{folder[0]}/images_per_identity.png") as figure:
        assert figure.width > 500 and len(np.unique(np.asarray(figure.convert("L")))) > 10


def test_the_long_tail():
    counts = np.array([1, 1, 2, 3, 4, 7, 8, 2**40 - 1, 2**40])
    bins = long_tail(counts)
    assert bins[:4] == [(1, 1, 2), (2, 3, 2), (4, 7, 2), (8, 15, 1)]
    assert bins[-2:] == [(2**39, 2**40 - 1, 1), (2**40, 2**41 - 1, 1)] and sum(n for *_, n in bins) == len(counts)


def test_parts_and_workers_change_nothing(folder, monkeypatch):
    expected = examine(folder[0], "train", "header", workers=1)
    monkeypatch.setattr(inspection, "PART", 3)
    monkeypatch.setattr(inspection, "BATCH", 2)
    found = examine(folder[0], "train", "header", workers=3)
    assert found.broken == expected.broken and found[2:] == expected[2:]
    assert found.images_per_identity.tolist() == expected.images_per_identity.tolist()


def test_whatever_training_takes(tmp_path, monkeypatch, capsys):
    images = pictures(8)
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(images):
        (tmp_path / "people" / str(i // 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "people" / str(i // 3) / f"{i}.jpg").write_bytes(image[:-9] if i == 3 else image)
    columns = {"photo": [{"bytes": image, "path": None} for image in images], "person": [i // 3 for i in range(8)]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    datasets.DatasetDict(eval=dataset).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "tables").mkdir()
    dataset.to_parquet(str(tmp_path / "tables" / "whatever.parquet"))
    named = {"image_column": "photo", "label_column": "person"}
    for name, settings, broken, figure in (
        ("people", {}, 1, "images_per_identity.png"),
        ("saved", named | {"split": "eval", "figure": "a.png"}, 0, "a.png"),
        ("tables", named, 0, "tables/images_per_identity.png"),
    ):
        inspect(name, workers=1, **settings)
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert lines[:2] == ["images 8", "identities 3"] and f"broken {broken}" in lines
        assert lines[-1] == f"figure {figure}" and (tmp_path / figure).is_file()
    assert not list((tmp_path / "people").glob("*.png"))
    inspect("generated:3:16", workers=1)
    assert "identities 3" in " ".join(capsys.readouterr().out.split())


def test_a_set_with_several_configurations(tmp_path, capsys):
    for name, labels in (("clean", [1, 2]), ("all", [1, 2, 3])):
        write(tmp_path / name, [list(zip(pictures(3), labels, strict=False))])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("clean", "all"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    settings = ["inspect", str(tmp_path), "--figure", str(tmp_path / "a.png"), "--workers", "2"]
    main([*settings, "--data_config", "all"])
    assert "images 3 identities 3" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"\['clean', 'all'\]: choose one, .* --data_config"):
        main(settings)


def test_what_cannot_be_inspected_is_refused(tmp_path, capsys, monkeypatch):
    def refused(reason, folder, **settings):
        with pytest.raises(UserError, match=reason):
            inspect(str(folder), workers=1, **settings)

    refused("no dataset folder .*none", tmp_path / "none")
    (tmp_path / "nothing").mkdir()
    refused("has no folder with images", tmp_path / "nothing")
    refused("empty", write(tmp_path / "empty", [[]]))
    whole = write(tmp_path / "whole", [[(pictures(1)[0], 1)]])
    refused("has no split 'test', it has train", whole, split="test")
    refused("no column for the images called 'photo'", whole, image_column="photo")
    write(tmp_path / "cut", [[(pictures(1)[0], 1)]])
    path = next((tmp_path / "cut").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    refused("is no whole parquet file", tmp_path / "cut")
    with pytest.raises(UserError, match="figure .*none/a.png cannot be written .*: choose another --figure"):
        inspect(whole, workers=1, figure=str(tmp_path / "none" / "a.png"))
    assert "images 1 identities 1" in " ".join(capsys.readouterr().out.split())  # all the same
    monkeypatch.setattr(inspection, "examine", None)  # is not even begun
    for name in ("a.bmp", "a"):
        refused(f"the figure {name} must end in one of .*png, .*svg", whole, figure=name)
