"""A folder of images as a dataset: paths and people, kept until something in the images changes."""

import os
import subprocess
import sys

import datasets
import numpy as np
import pytest

from ffc_ds.data.faces import Faces
from ffc_ds.data.image_folder import table
from ffc_ds.data.image_folder.table import open_image_folder
from ffc_ds.errors import UserError
from tests.data.image_folder.folders import picture, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "ffc_ds"


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "faces", "zoé/v/1.jpg", "ann b/2", "ann b/1.GIF")


def test_paths_and_names_in_a_memory_mapped_table(root, cache, monkeypatch):
    monkeypatch.chdir(root.parent)
    for place in (root, "faces"):
        (dataset,) = open_image_folder(place).values()
        assert dataset[:] == {
            "image": [{"bytes": None, "path": f"{root}/{path}"} for path in ("ann b/1.GIF", "ann b/2", "zoé/v/1.jpg")],
            "label": ["ann b", "ann b", "zoé"],
        }
        assert dataset.features == table.FEATURES and str(dataset.split) == "train"
        (file,) = cache.iterdir()
        assert dataset.cache_files == [{"filename": str(file)}]
    decoded = dataset.cast_column("image", datasets.Image())
    assert [image.getpixel((0, 0)) for image in decoded["image"]] == [(2, 0, 90), (1, 0, 90), (0, 0, 90)]
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_each_split_by_itself(tmp_path):
    write(tmp_path / "faces", "train/ann/1", "train/bob/2", "test/ann/3")
    opened = open_image_folder(tmp_path / "faces")
    assert {split: dataset["label"][:] for split, dataset in opened.items()} == {
        "test": ["ann"],
        "train": ["ann", "bob"],
    }
    assert {str(dataset.split) for dataset in opened.values()} == {"train", "test"}
    assert len({dataset._fingerprint for dataset in opened.values()}) == 2


def test_more_rows_than_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROWS", 4)
    monkeypatch.setattr(table, "PART", 3)
    paths = [f"{p}/{i}" for p in range(5) for i in range(3)]
    write(tmp_path / "faces", *paths)
    dataset = open_image_folder(tmp_path / "faces")["train"]
    assert [image["path"] for image in dataset["image"]] == [f"{tmp_path}/faces/{path}" for path in paths]
    assert dataset["label"][:] == [path[0] for path in paths]


def fingerprint(root):
    return open_image_folder(root)["train"]._fingerprint


def test_what_changes_behind_the_time_stamp_is_noticed(root, cache):
    before, path = fingerprint(root), root / "ann b" / "2"
    assert fingerprint(root) == before and len(list(cache.iterdir())) == 1
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(root) != before
    path.write_bytes(content)
    assert fingerprint(root) == before
    path.rename(root / "zoé" / "2")  # another person
    assert fingerprint(root) != before
    (root / "zoé" / "2").rename(path)
    (root / "ann b").rename(root / "bob")
    assert fingerprint(root) != before and open_image_folder(root)["train"]["label"][:] == ["bob", "bob", "zoé"]


def test_notes_beside_the_images_change_nothing(root):
    before = fingerprint(root)
    (root / "zoé" / "notes.xml").write_text("x")
    (root / "bob").mkdir()
    assert fingerprint(root) == before


def test_a_moved_folder_has_its_new_paths_and_its_old_fingerprint(root, tmp_path):
    before = fingerprint(root)
    root.rename(tmp_path / "moved")
    dataset = open_image_folder(tmp_path / "moved")["train"]
    assert dataset._fingerprint == before and dataset[0]["image"]["path"] == f"{tmp_path}/moved/ann b/1.GIF"


def test_names_that_are_no_utf8_stay_apart(tmp_path):
    root = os.fsencode(tmp_path / "faces")
    for value, name in enumerate((b"caf\xe8", b"caf\xe9")):
        os.makedirs(root + b"/" + name)
        with open(root + b"/" + name + b"/\xff.png", "wb") as file:
            file.write(picture(value))
    write(tmp_path / "faces", "caf\\xe8/1", "dan/1")
    dataset = open_image_folder(tmp_path / "faces")["train"]
    assert sorted(dataset["label"][:]) == ["caf\\\\xe8", "caf\\xe8", "caf\\xe9", "dan"]
    images = dict(zip(dataset["label"][:], (image["bytes"] for image in dataset["image"]), strict=True))
    assert images["caf\\xe8"] == picture(0) and images["caf\\xe9"] == picture(1)


def test_a_whole_path_that_is_no_utf8(tmp_path, monkeypatch):
    root = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(root)
    write(tmp_path / os.fsdecode(b"\xff"), "ann/1", "bob/2")
    monkeypatch.setattr(table, "BYTES", 1)
    dataset = open_image_folder(root.decode(errors="surrogateescape"))["train"]
    assert [image["bytes"] for image in dataset["image"]] == [picture(0), picture(1)]


def test_it_is_said_once_what_was_left_out_and_by_the_first_rank(root, capsys, monkeypatch):
    open_image_folder(root)
    assert capsys.readouterr().out == ""
    (root / "zoé" / "notes.xml").write_text("x")
    open_image_folder(root)
    open_image_folder(root)
    said = f"{root}: 2 people, 3 images; left out: 1 x of another kind: zoé/notes.xml\n"
    assert capsys.readouterr().out == said
    monkeypatch.setenv("RANK", "1")
    (root / "zoé" / "more.xml").write_text("x")
    open_image_folder(root)
    assert capsys.readouterr().out == ""


def test_processes_that_open_at_once_leave_one_table(root, cache, tmp_path):
    script = """if True:
        import sys, time
        from ffc_ds.data.image_folder.table import open_image_folder
        print("ready", flush=True)
        sys.stdin.readline()
        print(open_image_folder(sys.argv[1])["train"]["label"][:])
    """
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    line = [sys.executable, "-c", script, str(root)]
    running = [
        subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    found = [process.communicate("\n", timeout=60)[0] for process in running]
    assert found == ["['ann b', 'ann b', 'zoé']\n"] * 2 and len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(root, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(
        UserError, match=f"^the table of {root} cannot be made in {tmp_path}/cache/ffc_ds .*HF_DATASETS_CACHE"
    ):
        open_image_folder(root)


def test_a_table_that_is_cut_off_is_named(root, cache, monkeypatch):
    monkeypatch.setattr(table, "ROWS", 1)
    open_image_folder(root)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    half = whole[: len(whole) // 2]
    for damaged in (half, bytes(len(whole)), half + bytes(len(whole) - len(half))):
        file.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"copy of {root} in the cache is cut off .*: delete {file}, and it is made"
        ):
            open_image_folder(root)


def test_an_image_that_vanishes_while_it_is_opened(root, monkeypatch):
    known = table.read_image_folder

    def read_image_folder(root):
        folder = known(root)
        os.unlink(f"{root}/ann b/2")
        return folder

    monkeypatch.setattr(table, "read_image_folder", read_image_folder)
    opened = open_image_folder(root)["train"]
    place = opened["image"][:].index({"bytes": None, "path": f"{root}/ann b/2"})
    (gone,) = Faces(opened, "x", "image", "label").encoded(np.array([place]))
    assert str(gone) == f"{root}/ann b/2 cannot be read (No such file or directory)"
