"""Probes are people whatever the folders in theirs, distractors are all images; what is neither is counted and said."""

import pytest

from ffc_ds.errors import UserError
from ffc_ds.evaluation.image_files import images_below, read_distractors, read_probes
from tests.data.image_folder.folders import picture, write


def test_sessions_of_a_probe_are_one_person(tmp_path, capsys):
    sessions = [f"p{p}/session_{s}/{i}.jpg" for p in range(4) for s in range(3) for i in range(2)]
    write(tmp_path, *sessions, "dev_k/1", "dev_k/2.TIF")
    images, subjects = read_probes(str(tmp_path))
    assert images.paths == [f"{tmp_path}/{path}" for path in ["dev_k/1", "dev_k/2.TIF", *sessions]]
    assert subjects.tolist() == [0] * 2 + [1] * 6 + [2] * 6 + [3] * 6 + [4] * 6
    assert images.encoded([1]) == [picture(len(sessions) + 1)]
    assert capsys.readouterr().out == ""


def test_splits_are_no_matter_of_probes(tmp_path):
    write(tmp_path, "train/ann/1", "train/bob/2", "test/ann/3", "test/carl/4")
    assert read_probes(str(tmp_path))[1].tolist() == [0, 0, 1, 1]


def test_probes_that_find_nobody_are_left_out_and_said(tmp_path, capsys):
    write(tmp_path, "ann/1", "ann/v/2", "bob/1", "stray", ".git/x", "carl/._1")
    images, subjects = read_probes(str(tmp_path))
    assert images.paths == [f"{tmp_path}/ann/1", f"{tmp_path}/ann/v/2"] and subjects.tolist() == [0, 0]
    assert capsys.readouterr().out == (
        f"{tmp_path}: 1 people, 2 images; left out: 1 x hidden: .git/; 1 x a companion of macOS: carl/._1; "
        "1 x in no person's folder: stray; 1 x a person's only image: bob/1\n"
    )


def test_the_folder_of_one_person(tmp_path):
    write(tmp_path, "1.jpg", "2.jpg", "3")
    images, subjects = read_probes(str(tmp_path))
    assert len(images) == 3 and subjects.tolist() == [0, 0, 0]


def test_distractors_are_all_images(tmp_path, capsys, monkeypatch):
    write(tmp_path / "d", "1", "a/2.JPG", "a/b/c/3.gif", ".x/4")
    (tmp_path / "d" / "link").symlink_to(write(tmp_path / "e", "5.jpg"))
    (tmp_path / "d" / "list.txt").write_text("1")
    monkeypatch.chdir(tmp_path)
    images = read_distractors("d")
    assert images.paths == ["d/1", "d/a/2.JPG", "d/a/b/c/3.gif", "d/link/5.jpg"] == images_below("d")
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/d: 4 images; left out: 1 x hidden: .x/; 1 x text") and "list.txt" in said


@pytest.mark.parametrize("read", [read_probes, read_distractors])
def test_folders_without_images(tmp_path, read):
    (tmp_path / "empty").mkdir()
    (tmp_path / "ann.zip").write_bytes(b"PK")
    for name, reason in {
        "none": "^there is no folder ",
        "ann.zip": "is a file",
        "empty": "^there are no images in .*empty: check the path; left out: nothing$",
        ".": r"^there are no images in .*packed \(unpack it.*: ann.zip",
    }.items():
        with pytest.raises(UserError, match=reason):
            read(str(tmp_path / name))


def test_probes_without_a_pair(tmp_path):
    write(tmp_path, "ann/1", "bob/2")
    with pytest.raises(
        UserError, match="^nobody in .* has two images.*; left out: 2 x a person's only image: ann/1, bob/2"
    ):
        read_probes(str(tmp_path))
