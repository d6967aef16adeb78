import os

import pytest

from ffc_ds.data.importers.imagefolder import plan_imagefolder
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
    assert imported(plan_imagefolder(str(tmp_path / "faces")), tmp_path / "out") == [(pictures(1)[0], 0, "caf\ufffd")]


def test_an_unreadable_file_is_named(source):
    (source / "bob" / "0.JPG").unlink()
    (source / "bob" / "0.JPG").symlink_to("nowhere")
    records, broken = collect(plan_imagefolder(str(source)))
    assert len(records) == 12
    assert [key for key, _ in broken] == ["bob/0.JPG"] and "No such file" in broken[0].reason


def test_a_folder_without_images_of_identities_is_refused(tmp_path):
    (tmp_path / "stray.jpg").write_bytes(pictures(1)[0])
    (tmp_path / "ann").mkdir()
    for path, reason in ((tmp_path, "no folder with images"), (tmp_path / "none", "there is no folder")):
        with pytest.raises(UserError, match=reason):
            plan_imagefolder(str(path))
