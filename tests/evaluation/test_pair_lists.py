"""Lists of pairs in each published form; what is wrong in one is named with its line."""

import numpy as np
import pytest

from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_files import write_pair_bin
from ffc_ds.evaluation.pair_lists import read_pairs
from tests.protocol_data import person_folders, write_lines

TEN = [("Person_0", 1, 2)] * 5 + [("Person_0", 1, "Person_1", 2)] * 5


def named(pairs):
    """(files on the left, files on the right, same) by pair, without the folder."""
    images, group = pairs.templates.images, pairs.templates.group
    files = [
        [images.path(row).split("/data/")[1] for row in np.flatnonzero(group == g)] for g in range(group.max() + 1)
    ]
    return [(files[a], files[b], bool(same)) for a, b, same in zip(pairs.left, pairs.right, pairs.same, strict=True)]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_lfws_own_form(tmp_path, suffix):
    folder = person_folders(tmp_path / "data", people=3, images=3, suffix=suffix)
    rows = [
        (2, 2),
        *[("Person_0", 1, 2), ("Person_2", 3, 1), ("Person_0", 1, "Person_1", 2), ("Person_1", 3, "Person_2", 1)] * 2,
    ]
    write_lines(folder / "pairs.txt", rows)
    pairs = read_pairs(str(folder / "pairs.txt"))
    assert pairs.folds == 2 and pairs.same.tolist() == [True, True, False, False] * 2
    assert named(pairs)[:4] == [
        ([f"Person_0/Person_0_0001{suffix}"], [f"Person_0/Person_0_0002{suffix}"], True),
        ([f"Person_2/Person_2_0003{suffix}"], [f"Person_2/Person_2_0001{suffix}"], True),
        ([f"Person_0/Person_0_0001{suffix}"], [f"Person_1/Person_1_0002{suffix}"], False),
        ([f"Person_1/Person_1_0003{suffix}"], [f"Person_2/Person_2_0001{suffix}"], False),
    ]
    assert len(pairs.templates.images) == 6 and (pairs.templates.weight == 1).all()  # each image once


def test_a_list_elsewhere_with_tabs_and_without_a_heading(tmp_path):
    folder = person_folders(tmp_path / "data", people=2, images=2)
    (tmp_path / "some.txt").write_text("".join("\t".join(map(str, row)) + "\r\n" for row in TEN) + "\n")
    pairs = read_pairs(str(tmp_path / "some.txt"), str(folder))
    assert pairs.folds == 10 and len(pairs.same) == 10


def test_flat_folders_and_paths(tmp_path):
    folder = tmp_path / "data"
    person_folders(tmp_path / "nested", people=2, images=2)
    folder.mkdir()
    for path in (tmp_path / "nested").rglob("*.jpg"):
        path.rename(folder / path.name)
    write_lines(tmp_path / "pairs.txt", TEN)
    assert named(read_pairs(str(tmp_path / "pairs.txt"), str(folder)))[0] == (
        ["Person_0_0001.jpg"],
        ["Person_0_0002.jpg"],
        True,
    )
    write_lines(
        tmp_path / "paths.txt",
        [("Person_0_0001.jpg", "Person_0_0002", 1), ("Person_0_0001.jpg", "Person_1_0002.jpg", 0)] * 5,
    )
    pairs = read_pairs(str(tmp_path / "paths.txt"), str(folder))
    assert named(pairs)[1] == (["Person_0_0001.jpg"], ["Person_1_0002.jpg"], False)


def test_videos_of_ytf_are_the_mean_of_their_frames(tmp_path):
    folder = tmp_path / "data"
    for person, video, frames in ((0, 0, 3), (0, 4, 1), (1, 2, 2)):
        person_folders(tmp_path / "frames", people=1, images=frames)
        (folder / f"Person_{person}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames" / "Person_0").rename(folder / f"Person_{person}" / str(video))
    lines = ["split number, first name, second name, Is same identity"]
    lines += [f"{i}, Person_0/0, Person_0/4, 1\n{i}, Person_0/4, Person_1/2, 0" for i in range(1, 6)]
    (tmp_path / "splits.txt").write_text("\n".join(lines))
    pairs = read_pairs(str(tmp_path / "splits.txt"), str(folder))
    first, second, same = named(pairs)[0]
    assert (len(first), len(second), same, len(pairs.same)) == (3, 1, True, 10)
    np.testing.assert_allclose(pairs.templates.weight, [1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
    write_lines(tmp_path / "pairs.txt", [("Person_0", 0, 4)] * 5 + [("Person_0", 4, "Person_1", 2)] * 5)
    again = read_pairs(str(tmp_path / "pairs.txt"), str(folder))
    assert named(again)[0] == named(pairs)[0] and named(again)[-1] == named(pairs)[-1]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(10, 300), *TEN], "announces 6000 pairs and holds 10"),
        ([*TEN, ("Person_0", "one", "two")], "line 11 of .* is no pair: 'Person_0 one two'"),
        ([*TEN, ("Person_0", 1)], "line 11 of .* is no pair"),
        ([*TEN, ("Person_0", 1, 9)], "names Person_0 9, but .* no Person_0/Person_0_0009.jpg"),
        ([*TEN, ("Person_0", 1, "Person_7", 1)], "names Person_7 1"),
        ([*TEN, ("a.jpg", "b.jpg", 1)], "names a.jpg"),
        (TEN[:5], "5 pairs, from which 10 folds cannot be made"),
        (TEN[:5] * 2, "all of its pairs are of one kind"),
        ([], "0 pairs"),
    ],
)
def test_what_is_wrong_in_a_list_is_named(tmp_path, rows, reason):
    folder = person_folders(tmp_path / "data", people=2, images=2)
    write_lines(folder / "pairs.txt", rows)
    with pytest.raises(UserError, match=reason) as error:
        read_pairs(str(folder / "pairs.txt"))
    assert "pairs.txt" in str(error.value)


def test_unreadable_lists_and_unusable_bins(tmp_path):
    with pytest.raises(UserError, match="none.txt cannot be read: No such file"):
        read_pairs(str(tmp_path / "none.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.txt cannot be read"):
        read_pairs(str(tmp_path / "binary.txt"))
    write_pair_bin(tmp_path / "few.bin", [b"\xff\xd8\xff"] * 8, np.array([1, 0, 1, 0], dtype=bool))
    with pytest.raises(UserError, match="few.bin holds 4 pairs, from which 10 folds cannot be made"):
        read_pairs(str(tmp_path / "few.bin"))
