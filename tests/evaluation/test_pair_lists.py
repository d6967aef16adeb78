"""Pairs from every file: their images are found, and all that are missing are counted; folds are those of the file."""

import numpy as np
import pytest

from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_files import write_pair_bin
from ffc_ds.evaluation.pair_lists import read_pairs
from ffc_ds.evaluation.verification import verify_pairs
from ffc_ds.evaluation.verifier import Pairs
from tests.protocol_data import person_folders, picture, write_lines

TEN = [("Person_0", 1, 2)] * 5 + [("Person_0", 1, "Person_1", 2)] * 5


def named(pairs):
    """(files on the left, files on the right, same) by pair, without the folder."""
    images, group = pairs.templates.images, pairs.templates.group
    files = [
        [images.path(row).split("/data/")[1] for row in np.flatnonzero(group == g)] for g in range(group.max() + 1)
    ]
    return [(files[a], files[b], bool(same)) for a, b, same in zip(pairs.left, pairs.right, pairs.same, strict=True)]


def test_lfws_own_form(tmp_path):
    folder = person_folders(tmp_path / "data", people=3, images=3)
    rows = [
        (2, 2),
        *[("Person_0", 1, 2), ("Person_2", 3, 1), ("Person_0", 1, "Person_1", 2), ("Person_1", 3, "Person_2", 1)] * 2,
    ]
    write_lines(folder / "pairs.txt", rows)
    pairs = read_pairs(str(folder / "pairs.txt"))
    assert pairs.folds == 2 and pairs.same.tolist() == [True, True, False, False] * 2
    assert named(pairs)[:4] == [
        (["Person_0/Person_0_0001.jpg"], ["Person_0/Person_0_0002.jpg"], True),
        (["Person_2/Person_2_0003.jpg"], ["Person_2/Person_2_0001.jpg"], True),
        (["Person_0/Person_0_0001.jpg"], ["Person_1/Person_1_0002.jpg"], False),
        (["Person_1/Person_1_0003.jpg"], ["Person_2/Person_2_0001.jpg"], False),
    ]
    assert len(pairs.templates.images) == 6 and (pairs.templates.weight == 1).all()  # each image once


@pytest.mark.parametrize("ending", ["", ".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".bmp", ".webp", ".tif", ".TIFF"])
@pytest.mark.parametrize(
    "pattern",
    [
        *("{0}/{0}_{1:04d}", "{0}/{0}_{1:03d}", "{0}/{0}_{1}", "{0}/{1:04d}", "{0}/{1:06d}", "{0}/{1}"),
        *("{0}_{1:04d}", "{0}_{1:03d}", "{0}_{1}"),
    ],
)
def test_images_of_a_person_are_found_however_they_are_called(tmp_path, pattern, ending):
    for person in ("Person_0", "Person_1"):
        for i in (1, 2, 12):
            path = tmp_path / "data" / (pattern.format(person, i) + ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            path.with_name(f"{path.stem}.txt").touch()  # landmarks, or whatever else is beside images
    write_lines(tmp_path / "pairs.txt", [("Person_0", 2, 12)] * 5 + [("Person_0", "0001", "Person_1", 2)] * 5)
    pairs = read_pairs(str(tmp_path / "pairs.txt"), str(tmp_path / "data"))
    assert [named(pairs)[0], named(pairs)[-1]] == [
        ([pattern.format("Person_0", 2) + ending], [pattern.format("Person_0", 12) + ending], True),
        ([pattern.format("Person_0", 1) + ending], [pattern.format("Person_1", 2) + ending], False),
    ]


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("a/x.jpg", "a/x.jpg"),
        ("a/x.jpg", "a/x.png"),  # aligned, and written in another format
        ("a/x", "a/x.JPG"),
        ("a/x.y.png", "a/x.y.tif"),
        ("a\\x.jpg", "a/x.jpg"),
        ("a/x.bmp", "a/x"),
        ("x.jpg", "x.jpg"),
    ],
)
def test_paths_are_found_with_another_ending_or_none(tmp_path, listed, there):
    (tmp_path / "data" / "a").mkdir(parents=True)
    for file in (there, "b.jpg", "a/x.txt", "x.txt"):
        (tmp_path / "data" / file).touch()
    write_lines(tmp_path / "pairs.txt", [(listed, "b.jpg", i % 2) for i in range(10)])
    assert named(read_pairs(str(tmp_path / "pairs.txt"), str(tmp_path / "data")))[0] == ([there], ["b.jpg"], False)


def test_of_several_files_of_a_name_the_one_that_is_named_is_taken(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in ("x.jpg", "x.png", "x.tif", "P_0001.png", "P_1.jpg", "P_2.tif", "P_2.png", "P_2.jpg", "P_3.jpg"):
        (folder / file).touch()
    write_lines(folder / "paths.txt", [("x.tif", "x", i % 2) for i in range(10)])
    assert named(read_pairs(str(folder / "paths.txt")))[0] == (["x.tif"], ["x.jpg"], False)
    write_lines(folder / "pairs.txt", [("P", 1, 2), ("P", 1, "x", 3)][:1] * 5 + [("P", 2, "P", 3)] * 5)
    with pytest.raises(UserError, match="all of its pairs are of one kind"):  # P and P are one person
        read_pairs(str(folder / "pairs.txt"))
    (folder / "Q_1.jpg").touch()
    write_lines(folder / "pairs.txt", [("P", 1, 2)] * 5 + [("P", 2, "Q", 1)] * 5)
    assert named(read_pairs(str(folder / "pairs.txt")))[0] == (["P_0001.png"], ["P_2.jpg"], True)


def test_a_list_in_this_folder_needs_no_path(tmp_path, monkeypatch):
    folder = person_folders(tmp_path / "data", people=2, images=2)
    write_lines(folder / "pairs.txt", TEN)
    monkeypatch.chdir(folder)
    assert len(read_pairs("pairs.txt").same) == 10


def test_videos_of_ytf_are_the_mean_of_their_frames_and_splits_are_folds(tmp_path):
    folder = tmp_path / "data"
    for person, video, frames in ((0, 0, 3), (0, 4, 1), (1, 2, 2)):
        for frame in range(frames):
            path = folder / f"Person_{person}" / str(video) / f"aligned_detect_{video}.{frame}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(frame, person).save(path)
    lines = ["split number, pair number, first name, second name, is the same person"]
    lines += [f"{i % 3 + 1}, {i}, Person_0/0, Person_0/4, 1" for i in range(6)]
    lines += [f"{i % 3 + 1}, {i}, Person_0/4, Person_1/2, 0" for i in range(6, 12)]
    (tmp_path / "splits.txt").write_text("\n".join(lines))
    pairs = read_pairs(str(tmp_path / "splits.txt"), str(folder))
    first, second, same = named(pairs)[0]
    assert [len(first), len(second), same, len(pairs.same)] == [3, 1, True, 12]
    assert first[0] == "Person_0/0/aligned_detect_0.0.jpg"
    np.testing.assert_allclose(pairs.templates.weight, [1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
    assert pairs.folds.tolist() == [1, 2, 3] * 4
    write_lines(tmp_path / "pairs.txt", [("Person_0", 0, 4)] * 5 + [("Person_0", 4, "Person_1", 2)] * 5)
    again = read_pairs(str(tmp_path / "pairs.txt"), str(folder))
    assert named(again)[0] == named(pairs)[0] and named(again)[-1] == named(pairs)[-1]


def test_calfws_list_of_two_lines_a_pair(tmp_path):
    """pairs_CALFW.txt: all genuine pairs first, with the numbers of their folds; images flat beside it."""
    folder = tmp_path / "data"
    (folder / "aligned images").mkdir(parents=True)
    for name in ("Person_0_0001", "Person_0_0004", "Person_1_0002"):
        (folder / "aligned images" / f"{name}.jpg").touch()
    lines = [f"{name} {fold}" for fold in range(1, 11) for name in ("Person_0_0001.jpg", "Person_0_0004.jpg")]
    lines += [f"{name} 0" for _ in range(10) for name in ("Person_0_0001.jpg", "Person_1_0002.jpg")]
    (folder / "pairs_CALFW.txt").write_text("\n".join(lines) + "\n")
    pairs = read_pairs(str(folder / "pairs_CALFW.txt"), str(folder / "aligned images"))
    assert pairs.same.tolist() == [True] * 10 + [False] * 10 and pairs.folds == 10
    images = "aligned images/Person_0_0001.jpg"
    assert named(pairs)[0] == ([images], ["aligned images/Person_0_0004.jpg"], True)
    assert named(pairs)[-1] == ([images], ["aligned images/Person_1_0002.jpg"], False)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20, 4))
    expected = verify_pairs(a, b, pairs.same, np.tile(np.arange(10), 2))  # fold i + 1 holds genuine pair i
    assert verify_pairs(a, b, pairs.same, pairs.folds).accuracy == expected.accuracy


def test_kaggles_two_halves_are_one_set(tmp_path):
    folder = person_folders(tmp_path / "data", people=2, images=2)
    (folder / "matchpairsDevTest.csv").write_text("name,imagenum1,imagenum2\n" + "Person_0,1,2\n" * 6)
    with pytest.raises(UserError, match=r"mismatchpairsDevTest.csv cannot be read: No such file"):
        read_pairs(str(folder / "matchpairsDevTest.csv"))
    (folder / "mismatchpairsDevTest.csv").write_text(
        "name,imagenum1,name.1,imagenum2\n" + "Person_0,1,Person_1,2\n" * 6
    )
    for half in ("match", "mismatch"):
        pairs = read_pairs(str(folder / f"{half}pairsDevTest.csv"))
        assert pairs.same.tolist() == [True] * 6 + [False] * 6
        assert named(pairs)[-1] == (["Person_0/Person_0_0001.jpg"], ["Person_1/Person_1_0002.jpg"], False)


def cfp_folder(root, people=3, folds=2):
    images = {"frontal": 2, "profile": 1}
    lists = {kind: [] for kind in images}
    for person in range(1, people + 1):
        for kind, count in images.items():
            (root / f"Data/Images/{person:03d}/{kind}").mkdir(parents=True)
            for i in range(1, count + 1):
                lists[kind].append(f"Data/Images/{person:03d}/{kind}/{i:02d}.jpg")
                picture(i, person).save(root / lists[kind][-1])
    for letter, kind in (("F", "frontal"), ("P", "profile")):
        (root / "Protocol" / "Split").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{i} ../{path}\r\n" for i, path in enumerate(lists[kind], 1))
        (root / "Protocol" / f"Pair_list_{letter}.txt").write_text(text)
    for fold in range(1, folds + 1):
        for split, same, different in (("FP", "1,1\n4,2\n", "1,2\n5,3\n6,1\n"), ("FF", "1,2\n", "1,3\n")):
            place = root / "Protocol" / "Split" / split / f"{fold:02d}"
            place.mkdir(parents=True)
            (place / "same.txt").write_text(same)
            (place / "diff.txt").write_text(different)
    return root


def test_cfps_protocol_is_read_as_its_authors_give_it_out(tmp_path):
    root = cfp_folder(tmp_path / "data")
    pairs = read_pairs(str(root / "Protocol" / "Split" / "FP"))
    images = "Data/Images"
    assert named(pairs)[:3] == [
        ([f"{images}/001/frontal/01.jpg"], [f"{images}/001/profile/01.jpg"], True),
        ([f"{images}/002/frontal/02.jpg"], [f"{images}/002/profile/01.jpg"], True),
        ([f"{images}/001/frontal/01.jpg"], [f"{images}/002/profile/01.jpg"], False),
    ]
    assert pairs.folds.tolist() == [0] * 5 + [1] * 5 and pairs.same.sum() == 4
    frontal = read_pairs(str(root / "Protocol" / "Split" / "FF") + "/")
    assert named(frontal)[1] == ([f"{images}/001/frontal/01.jpg"], [f"{images}/002/frontal/01.jpg"], False)
    aligned = root / "aligned"
    (root / "Data" / "Images").rename(aligned)
    assert named(read_pairs(str(root / "Protocol" / "Split" / "FP"), str(aligned)))[0][0] == [
        "aligned/001/frontal/01.jpg"
    ]
    (root / "Protocol" / "Split" / "FP" / "02" / "diff.txt").write_text("1,99\n")
    with pytest.raises(UserError, match=r"line 1 of .*02/diff.txt names an image that .*Pair_list"):
        read_pairs(str(root / "Protocol" / "Split" / "FP"))
    with pytest.raises(UserError, match="is a folder: give a list of pairs or a .bin in it, or of CFP"):
        read_pairs(str(root))


def test_all_missing_images_are_counted_and_the_first_are_named(tmp_path):
    folder = person_folders(tmp_path / "data", people=2, images=2)
    rows = [("Person_0", 1, i) for i in range(1, 9)] + [("Person_0", 1, f"Nobody_{i}", 3) for i in range(1200)]
    write_lines(folder / "pairs.txt", rows)
    with pytest.raises(UserError) as error:
        read_pairs(str(folder / "pairs.txt"))
    assert f"{folder}/pairs.txt names 1,206 of 1,208 images that are not in {folder}: " in str(error.value)
    assert "Person_0 3, Person_0 4, Person_0 5, Person_0 6, Person_0 7, ... Give" not in str(error.value)
    assert "Person_0 3, Person_0 4, Person_0 5, Person_0 6, Person_0 7, .... Give the folder" in str(error.value)
    write_lines(folder / "pairs.txt", [*TEN, ("Person_0", 1, "Person_7", 1)])
    (folder / "Person_7" / "1").mkdir(parents=True)  # a video without frames
    with pytest.raises(UserError, match=r"names 1 of 4 images .*: Person_7 1\. Give the folder of the images"):
        read_pairs(str(folder / "pairs.txt"))
    with pytest.raises(UserError, match="there is no folder of images elsewhere for .*pairs.txt: give it by --images"):
        read_pairs(str(folder / "pairs.txt"), "elsewhere")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (TEN[:5], "5 pairs, from which 10 folds cannot be made"),
        (TEN[:5] * 2, "all of its pairs are of one kind"),
        ([(1, 1, "Person_0/Person_0_0001", "Person_1/Person_1_0002", i % 2) for i in range(10)], "from which 1 folds"),
        (["", "# no pairs"], "0 pairs"),
    ],
)
def test_pairs_that_cannot_be_verified(tmp_path, rows, reason):
    folder = person_folders(tmp_path / "data", people=2, images=2)
    write_lines(folder / "pairs.txt", [(row,) if isinstance(row, str) else row for row in rows])
    with pytest.raises(UserError, match=reason) as error:
        read_pairs(str(folder / "pairs.txt"))
    assert "pairs.txt" in str(error.value)


def test_bins_that_cannot_be_verified_are_refused_before_a_training_begins(tmp_path):
    write_pair_bin(tmp_path / "few.BIN", [b"\xff\xd8\xff"] * 8, np.array([1, 0, 1, 0], dtype=bool))
    with pytest.raises(UserError, match="few.BIN holds 4 pairs, from which 10 folds cannot be made"):
        read_pairs(str(tmp_path / "few.BIN"))
    with pytest.raises(UserError, match="few.BIN holds 4 pairs"):
        Pairs.from_bin(str(tmp_path / "few.BIN"))
    write_pair_bin(tmp_path / "one.bin", [b"\xff\xd8\xff"] * 40, np.ones(20, dtype=bool))
    with pytest.raises(UserError, match="one.bin needs pairs of both kinds"):
        Pairs.from_bin(str(tmp_path / "one.bin"))
