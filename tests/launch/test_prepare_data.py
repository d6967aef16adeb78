"""`launch/prepare_data.py` through its front door: every source, and every bad input once."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from ffc_ds.data.opening import load_faces
from ffc_ds.errors import UserError
from launch.prepare_data import main
from tests.data.importers.formats import pictures, rows
from tests.data.importers.test_imagefolder import COUNTS, write_people
from tests.data.importers.test_lmdb import datum, write_keys, write_lmdb
from tests.data.importers.test_recordio import packed, write_set
from tests.data.importers.test_webdataset import samples, write_tar

ROOT = Path(__file__).resolve().parents[2]
IMAGES = pictures(12)
EXPECTED = [(image, i // 3, str(i // 3)) for i, image in enumerate(IMAGES)]


@pytest.fixture
def sources(tmp_path):
    """The same images in every format that has numbers for identities, as arguments of the command."""
    records = [(i + 1, packed(float(i // 3), image)) for i, image in enumerate(IMAGES)]
    recordio = write_set(tmp_path / "recordio", records, identities=4)
    values = {f"{i}.jpg": datum(image) for i, image in enumerate(IMAGES)}
    lmdb = write_lmdb(tmp_path / "lmdb", values)
    keys = write_keys(tmp_path / "keys.txt", [f"{i}.jpg {i // 3}" for i in range(12)])
    write_tar(tmp_path / "tars" / "a.tar", samples(12))
    return {
        "recordio": ["recordio", str(recordio), "--shard-images", "5"],
        "lmdb": ["lmdb", str(lmdb), keys, "--shard_images=7"],
        "webdataset": ["webdataset", str(tmp_path / "tars")],
    }


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "launch/prepare_data.py", *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["recordio", "lmdb", "webdataset"])
def test_every_format_arrives_identical(sources, kind, tmp_path, monkeypatch):
    sharp = ["--check=full", "--max-megapixels", "0.00048"]  # 20 x 24 pixels
    main([*sources[kind], str(tmp_path / "out"), "--workers", "1", "--on-error", "stop", *sharp])
    assert rows(tmp_path / "out") == EXPECTED
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    faces = load_faces(str(tmp_path / "out"), "train", "image", "label")
    assert faces.encoded(range(12)) == list(IMAGES) and [faces.label(i) for i in range(12)] == [
        i // 3 for i in range(12)
    ]


def test_an_image_folder_in_the_shell_looked_at_afterwards(tmp_path):
    imagefolder = write_people(tmp_path / "faces")
    out = tmp_path / "out"
    (imagefolder / "bob" / "0.JPG").write_bytes(IMAGES[0][:100])
    done = run("imagefolder", imagefolder, out)
    assert done.returncode == 0, done.stderr
    assert "broken: bob/0.JPG: not a readable image of 100 bytes" in done.stdout
    assert f"12 images in {out}, 1 broken records (see {out}/broken.tsv)" in done.stdout
    assert "100%" in done.stderr and "images=12" in done.stderr
    assert {identity for *_, identity in rows(out)} == {name for name, count in COUNTS.items() if count > 1}
    done = run("inspect", out, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert [" ".join(line.split()) for line in done.stdout.splitlines()[:2]] == ["images 12", "identities 3"]
    assert (out / "images_per_identity.png").is_file()
    # nothing of that disturbs load_dataset
    assert datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"), split="train").num_rows == 12


def test_refused_in_the_shell(tmp_path):
    done = run("recordio", tmp_path, tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("error: there is no ") and len(done.stderr.strip().splitlines()) == 1
    assert run("recordio", tmp_path).returncode == 2 and run().returncode == 2
    assert not list(tmp_path.iterdir())


def test_bad_input_gives_one_message_and_leaves_nothing(sources, tmp_path):
    recordio, lmdb, tars = (Path(sources[kind][1]) for kind in ("recordio", "lmdb", "webdataset"))
    out = tmp_path / "out"

    def refused(reason, *arguments):
        with pytest.raises(UserError, match=reason) as refusal:
            main([*map(str, arguments), str(out), "--workers", "1"])
        assert "\n" not in str(refusal.value) and not out.exists()

    (tmp_path / "empty").mkdir()
    refused("The command cannot be used: .*on_error", *sources["recordio"], "--on-error", "ask")
    refused("The command cannot be used: .*shard_images", *sources["recordio"], "--shard-images", "many")
    refused("shard_images is 0", *sources["lmdb"], "--shard-images", "0")
    refused("there is no folder", "imagefolder", tmp_path / "none")
    refused("no folder with images", "imagefolder", tmp_path / "empty")
    refused("there is no tar", "webdataset", tmp_path / "empty")
    refused("there is no LMDB", "lmdb", tmp_path / "empty", sources["lmdb"][2])
    refused("there is no key file", "lmdb", lmdb, tmp_path / "none")
    write_tar(tars / "b.tar", [("a", {"jpg": IMAGES[0]})])
    refused(r"b\.tar holds no \.cls", "webdataset", tars / "b.tar")
    (tars / "c.tar").write_bytes(b"no tar")
    refused("no image can be used.*c.tar after its start", "webdataset", tars / "c.tar")
    content = (recordio / "train.rec").read_bytes()
    (recordio / "train.rec").write_bytes(content[:32] + b"junk" + content[36:])
    refused("broken record 1: not a ", *sources["recordio"][:2], "--on-error", "stop", "--check", "full")
    (recordio / "train.rec").write_bytes(b"junk")
    refused("not a RecordIO file: it is a text", *sources["recordio"])
    (recordio / "train.rec").unlink()
    refused(r"there is no .*train\.rec", *sources["recordio"])


@pytest.mark.parametrize("kind, name", [("recordio", "train.rec"), ("lmdb", "data.mdb"), ("webdataset", "a.tar")])
def test_an_import_of_a_source_that_changed_since_is_refused(sources, kind, name, tmp_path):
    arguments = [*sources[kind], str(tmp_path / "out"), "--workers", "1"]
    main(arguments)
    main(arguments)
    path = Path(sources[kind][1]) / name
    content, times = path.read_bytes(), path.stat()
    place = content.index(IMAGES[7][-40:])
    path.write_bytes(content[:place] + bytes(8) + content[place + 8 :])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(
        UserError, match="the source's files changed since .*out was begun: give another folder"
    ) as told:
        main(arguments)
    assert len(str(told.value)) < 300
    assert rows(tmp_path / "out") == EXPECTED
    path.write_bytes(content)
    main(arguments)


def test_records_without_an_index_in_the_shell(sources, tmp_path):
    source = Path(sources["recordio"][1])
    (source / "train.idx").unlink()
    content = bytearray((source / "train.rec").read_bytes())
    content[:8] = bytes(8)
    (source / "train.rec").write_bytes(content)
    done = run("recordio", source, tmp_path / "out", "--workers", "1")
    assert done.returncode == 0 and rows(tmp_path / "out") == EXPECTED[1:]
    assert "train.idx, so the records of train.rec are found by scanning" in done.stdout
    assert "11 images in" in done.stdout and "1 broken records" in done.stdout and "broken: byte 0: " in done.stdout


def test_a_folder_that_can_neither_be_looked_at_nor_uploaded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for command, reason in ((["inspect"], "cannot open dataset"), (["push"], "repo"), (["push", "a/b"], "no token")):
        with pytest.raises(UserError, match=reason):
            main([command[0], str(tmp_path), *command[1:]])
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written(sources, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"the import to .*file.* stopped \(.*Not a directory"):
            main([*sources["lmdb"], str(output)])
