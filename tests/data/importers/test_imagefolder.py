import io
import os

import pytest
from PIL import Image

from ffc_ds.data.importers.imagefolder import plan_imagefolder
from ffc_ds.data.importers.shards import write_shards
from ffc_ds.errors import UserError
from tests.data.importers.formats import collect, imported, pictures

# out of order, with blanks and letters beyond ASCII, and one identity without an image
COUNTS = {"zoé": 2, "Ann B": 7, "bob": 1, "empty": 0, "carl": 3}


def write_people(folder):
    """A folder for each person, and what does not belong there."""
    images = iter(pictures(13))
    for identity, count in COUNTS.items():
        (folder / identity).mkdir(parents=True)
        for i in range(count):
            (folder / identity / f"{i}.{('JPG', 'png')[i % 2]}").write_bytes(next(images))
    (folder / "bob" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "0.jpg").write_bytes(pictures(1)[0])
    (folder / "stray.jpg").write_bytes(pictures(1)[0])
    return folder


@pytest.fixture
def source(tmp_path):
    return write_people(tmp_path / "faces")


@pytest.mark.parametrize("shard_images", [1, 3, 7, 13, 100])
def test_images_arrive_identical_numbered_by_sorted_names(source, tmp_path, shard_images):
    names = ["Ann B", "bob", "carl", "zoé"]
    expected = [
        (path.read_bytes(), label, name)
        for label, name in enumerate(names)
        for path in sorted((source / name).glob("[0-9]*"))
    ]
    plan = plan_imagefolder(str(source), shard_images)
    if shard_images in (3, 100):
        assert imported(plan, tmp_path / "out") == expected
    records, broken = collect(plan)
    assert [(r.image, r.label, r.identity) for r in records] == expected and not broken
    assert len(plan.jobs) == -(-13 // shard_images)
    assert all(sum(1 for _ in job()) <= shard_images for job in plan.jobs)


def test_names_that_are_no_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/faces/caf\xe9"
    os.makedirs(folder)
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(pictures(1)[0])
    assert imported(plan_imagefolder(str(tmp_path / "faces")), tmp_path / "out") == [(pictures(1)[0], 0, "caf\\xe9")]


def test_all_of_34_people_in_folders_and_formats_of_many_kinds(tmp_path):
    expected, source = [], tmp_path / "faces"
    places = ["{}/1.jpg", "{}/video_00/1.jpg", "{}/a/b/1.GIF", "{}/1.tif", "{}/1.jfif", "{}/1", "{}/1.txt"]
    for number in range(34):
        content, name = io.BytesIO(), f"person {number:02}"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(content, ("JPEG", "PNG", "GIF", "TIFF", "BMP")[number % 5])
        file = source / places[number % len(places)].format(name)
        if number % 3:
            file.parent.mkdir(parents=True)
        else:  # a link, as to another disk
            (tmp_path / "disk" / name).mkdir(parents=True)
            source.mkdir(exist_ok=True)
            (source / name).symlink_to(tmp_path / "disk" / name)
            file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.getvalue())
        expected.append((content.getvalue(), number, name))
    plan = plan_imagefolder(str(source), 10)
    assert (plan.about["identities"], plan.about["images"]) == (34, 34)
    assert imported(plan, tmp_path / "out", check="full") == expected


def test_what_should_have_been_an_image_is_broken_and_other_files_are_told(source, tmp_path, capsys):
    (source / "bob" / "0.JPG").unlink()
    (source / "bob" / "0.JPG").symlink_to("nowhere")
    (source / "carl" / "2.JPG").write_bytes(b"")
    (source / "zoé" / "1.png").write_bytes(b"<html>404</html>")
    records, broken = collect(plan_imagefolder(str(source)))
    assert len(records) == 10 and {record.identity for record in records} == {"Ann B", "carl", "zoé"}
    assert dict(broken) == {
        "bob/0.JPG": "a link to nothing",
        "carl/2.JPG": "empty",
        "zoé/1.png": "a web page under an image's name",
    }
    said = capsys.readouterr().out
    assert f"{source}: 3 people, 10 images; left out: 1 x hidden: .hidden/; " in said
    assert "bob/notes.txt" in said and "1 x in no person's folder: stray.jpg" in said
    assert "2 x a folder without an image: bob/, empty/" in said and "2.JPG" not in said
    with pytest.raises(UserError, match="^broken record bob/0.JPG: a link to nothing; --on_error skip leaves"):
        write_shards(plan_imagefolder(str(source)), str(tmp_path / "out"), workers=1, on_error="stop")


def test_an_image_that_vanishes_is_broken(source):
    plan = plan_imagefolder(str(source))
    (source / "bob" / "0.JPG").unlink()
    records, broken = collect(plan)
    assert len(records) == 12 and broken == [("bob/0.JPG", "it cannot be read (No such file or directory)")]


def test_a_source_that_changed_behind_its_time_stamps_is_another_import(source, tmp_path):
    first, out, file = (
        imported(plan_imagefolder(str(source)), tmp_path / "out"),
        tmp_path / "out",
        source / "bob" / "0.JPG",
    )
    assert imported(plan_imagefolder(str(source)), out) == first  # the same again
    times, content = file.stat(), file.read_bytes()
    other = bytearray(content)
    other[len(other) // 2] ^= 1
    file.write_bytes(other)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=f"{out} was begun for another import .content was .*: give another folder"):
        imported(plan_imagefolder(str(source)), out)
    file.write_bytes(content)
    (source / "carl").rename(source / "dora")  # the same counts
    with pytest.raises(UserError, match="content was"):
        imported(plan_imagefolder(str(source)), out)


def test_splits_are_imported_one_by_one(tmp_path, capsys):
    for split in ("train", "test"):
        write_people(tmp_path / "faces" / split)
    with pytest.raises(UserError, match="has the splits test, train: give the folder of each by itself"):
        plan_imagefolder(str(tmp_path / "faces"))
    one = imported(plan_imagefolder(str(tmp_path / "faces" / "train")), tmp_path / "one")
    (tmp_path / "faces" / "test").rename(tmp_path / "elsewhere")
    assert imported(plan_imagefolder(str(tmp_path / "faces")), tmp_path / "two") == one and len(one) == 13


def test_a_folder_without_images_of_identities_is_refused(tmp_path):
    (tmp_path / "stray.jpg").write_bytes(pictures(1)[0])
    (tmp_path / "ann").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path, reason in (
        (tmp_path, "no folder with images"),
        (tmp_path / "none", "there is no folder"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(UserError, match=reason):
            plan_imagefolder(str(path))
