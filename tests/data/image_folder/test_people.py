"""The first folder is the person, whatever it and its files are called; splits only where all of it is so."""

import pytest

from ffc_ds.data.image_folder.people import count_images, read_image_folder
from ffc_ds.errors import UserError
from tests.data.image_folder.folders import write


def counts(root):
    """People and images of each split."""
    folder = read_image_folder(root)
    return {split: (len(people), count_images(people)) for split, people in folder.splits.items()}


def test_videos_of_a_person_are_one_identity(tmp_path):
    write(
        tmp_path,
        *(f"person_{p:02}/video_{v:02}/{i}.jpg" for p in range(15) for v in range(p % 4 + 1) for i in range(2)),
    )
    assert counts(tmp_path) == {"train": (15, 2 * (3 * 10 + 6))}
    people = read_image_folder(tmp_path).splits["train"]
    assert people["person_01"] == [f"person_01/video_0{v}/{i}.jpg" for v in range(2) for i in range(2)]


def test_names_of_files_make_no_splits(tmp_path):
    write(
        tmp_path, *(f"p{p}/{name}_{k}.jpg" for p in range(8) for name in ("train", "test", "val", "dev") for k in "0")
    )
    assert counts(tmp_path) == {"train": (8, 32)}
    assert not read_image_folder(tmp_path).doubts


def test_names_of_people_make_no_splits(tmp_path):
    names = ["dev_patel", "val_k", "test_person", "train_1", "dev-2", "Train 7", "eval.x", "Dev", "test", "ann"]
    write(tmp_path, *(f"{name}/{i}.jpg" for name in names for i in range(2)))
    folder = read_image_folder(tmp_path)
    assert list(folder.splits["train"]) == sorted(names) and counts(tmp_path) == {"train": (10, 20)}
    assert str(folder) == f"{tmp_path}: 10 people, 20 images"


def test_linked_people_are_people(tmp_path):
    write(tmp_path / "root", *(f"p{p}/{i}.jpg" for p in range(3) for i in range(2)))
    write(tmp_path / "disk", *(f"p{p}/{i}.jpg" for p in range(3, 6) for i in range(3)))
    for p in range(3, 6):
        (tmp_path / "root" / f"p{p}").symlink_to(tmp_path / "disk" / f"p{p}")
    assert counts(tmp_path / "root") == {"train": (6, 15)}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train/ann/1", "train/bob/2", "test/carl/3"], {"train": (2, 2), "test": (1, 1)}),
        (["Training/ann/1", "testing/carl/v/3", "VAL/d/1"], {"train": (1, 1), "test": (1, 1), "validation": (1, 1)}),
        (["train/ann/1", "train/bob/2", "valid/c/3"], {"train": (2, 2), "validation": (1, 1)}),
        (["train/ann/1", "train/bob/2"], {"train": (2, 2)}),
        (["eval/ann/1", "eval/bob/2"], {"test": (2, 2)}),
        (["train/ann/1", "dev/bob/2", "val/c/3"], {"train": (1, 1), "dev": (1, 1), "val": (1, 1)}),
        (["train/ann/1", "train/2", "3", "test/bob/4"], {"train": (1, 1), "test": (1, 1)}),  # 2 and 3 are nobody's
        (["train/ann/1", "test/bob/2", ".git/x/3", "__MACOSX/train/ann/4"], {"train": (1, 1), "test": (1, 1)}),
    ],
)
def test_splits(tmp_path, paths, expected):
    write(tmp_path, *paths)
    (tmp_path / "annotations").mkdir()  # without an image it is nobody
    (tmp_path / "annotations" / "boxes.xml").write_text("")
    assert counts(tmp_path) == expected


@pytest.mark.parametrize(
    ("paths", "people", "doubtful"),
    [
        (["train/1", "test/2"], 2, "train, test"),
        (["train/ann/1", "train/bob/2", "test/3"], 2, "train, test"),
        (["train/ann/1", "test/bob/2", "extra/3"], 3, "train, test"),
        (["train/ann/1", "test/2", "ann/3", "bob/4"], 4, "train"),
        (["train/1", "test/2", "ann/3"], 3, None),
        (["dev/video_1/1", "dev/video_2/2", "ann/video_1/3"], 2, "dev"),
    ],
)
def test_no_splits_but_people_and_a_word_about_it(tmp_path, paths, people, doubtful):
    write(tmp_path, *paths)
    assert counts(tmp_path) == {"train": (people, len(paths))}
    said = str(read_image_folder(tmp_path))
    if doubtful is None:
        assert "taken for people" not in said
    else:
        assert {*doubtful.split(", ")} == {
            *said.partition("images; ")[2].partition(": taken for people")[0].split(", ")
        }


def test_a_folder_around_all_people_is_pointed_out(tmp_path):
    write(tmp_path, "faces/ann/1", "faces/bob/2")
    hint = "all is one person: if the people are the folders in it, give"
    assert str(read_image_folder(tmp_path)) == f"{tmp_path}: 1 people, 2 images; {hint} {tmp_path}/faces"
    assert counts(tmp_path / "faces") == {"train": (2, 2)}
    write(tmp_path / "other", "train/images/ann/1", "train/images/bob/2", "test/ann/1", "test/carl/1")
    assert f"{hint} {tmp_path}/other/train/images" in str(read_image_folder(tmp_path / "other"))


def test_what_is_nobodys_is_counted(tmp_path):
    write(tmp_path, "ann/1.jpg", "ann/v/2.jpg", "stray.jpg", ".x.jpg")
    for name in ("bob", "carl/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "carl" / "notes.xml").write_text("x")
    assert str(read_image_folder(tmp_path)) == (
        f"{tmp_path}: 1 people, 2 images; left out: 1 x hidden: .x.jpg; 1 x of another kind: carl/notes.xml; "
        "1 x in no person's folder: stray.jpg; 2 x a folder without an image: bob/, carl/"
    )
    write(tmp_path, "train/2.jpg", "test/ann/1.jpg")
    (tmp_path / "ann").rename(tmp_path / "train" / "ann")
    (tmp_path / "bob").rename(tmp_path / "train" / "bob")
    left_out = read_image_folder(tmp_path).left_out
    assert left_out["in no person's folder"] == ["stray.jpg", "train/2.jpg"]
    assert left_out["a folder without an image"] == ["carl/", "carl/deep/", "train/bob/"]


@pytest.mark.parametrize("folders", [["train", "test"], ["train"]])
@pytest.mark.parametrize("table", ["train/metadata.csv", "train/metadata.jsonl", "metadata.parquet"])
def test_labels_in_a_table_are_not_overlooked(tmp_path, folders, table):
    write(tmp_path, *(f"{folder}/{i}.jpg" for folder in folders for i in range(3)))
    (tmp_path / table).write_text("file_name,label\n0.jpg,1\n")
    with pytest.raises(
        UserError, match=f"^the labels of {tmp_path} are in {table}, .*as {min(folders)}/PERSON/IMAGE, or"
    ):
        read_image_folder(tmp_path)


def test_nobody(tmp_path):
    expected = (
        f"{tmp_path} has no folder with images, and expected is one for each person, as {tmp_path}/PERSON/IMAGE; "
    )
    with pytest.raises(UserError) as refusal:
        read_image_folder(tmp_path)
    assert str(refusal.value) == expected + "left out: nothing"
    write(tmp_path, "1.jpg", "2.jpg")
    for name, content in (("metadata.csv", "file_name,label"), ("ann.zip", "PK"), ("train.rec", "x")):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refusal:
        read_image_folder(tmp_path)
    for part in (expected, "no person's folder: 1.jpg, 2.jpg", "no label is read (a person is a folder): metadata.csv"):
        assert part in str(refusal.value)
    assert "(unpack it; " in str(refusal.value) and "`prepare_data.py recordio`" in str(refusal.value)
