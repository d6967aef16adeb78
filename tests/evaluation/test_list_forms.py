"""Lists of pairs in each form that the field has; what is wrong in one is named with its line and the forms."""

import itertools
import pickle
import random

import pytest

from ffc_ds.errors import UserError
from ffc_ds.evaluation.list_forms import COLUMN_NAMES, FORMS, read_list

A, B, C = ("a.jpg",), ("b c.png",), ("d, e.JPG",)


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return str(path)


def pairs(path):
    listed = read_list(path)
    return list(zip(listed.first, listed.second, listed.same, strict=True))


NUMBERED = [("Ann_A", "1", "4"), ("Bob_B", "2", "3"), ("Ann_A", "1", "Bob_B", "0002"), ("Bob_B", "3", "Ann_A", "10")]
OF_PEOPLE = [
    (("Ann_A", 1), ("Ann_A", 4), True),
    (("Bob_B", 2), ("Bob_B", 3), True),
    (("Ann_A", 1), ("Bob_B", 2), False),
    (("Bob_B", 3), ("Ann_A", 10), False),
]


@pytest.mark.parametrize("separator", ["\t", " ", "   ", ",", ", ", ";", " \t", ",\t"])
def test_a_numbered_list_however_it_is_written(tmp_path, separator):
    headings = ["", "2{}1", "2", "4", "name{}imagenum1{}imagenum2{}", "# a remark"]
    for heading, end, encoding in itertools.product(headings, ("\n", "\r\n", "\r"), ("utf-8", "utf-8-sig", "utf-16")):
        lines = [heading.replace("{}", separator), *map(separator.join, NUMBERED), ""]
        path = written(tmp_path, end.join(lines), encoding)
        assert pairs(path) == OF_PEOPLE, (heading, end, encoding)
        assert read_list(path).folds == (2 if heading == "2{}1" else 10)


def test_names_keep_blanks_and_commas_where_tabs_or_commas_separate(tmp_path):
    tabs = "Davis, Jr.\t1\t2\nÅsa Öberg\t3\tDavis, Jr.\t1\n"
    assert pairs(written(tmp_path, tabs)) == [
        (("Davis, Jr.", 1), ("Davis, Jr.", 2), True),
        (("Åsa Öberg", 3), ("Davis, Jr.", 1), False),
    ]
    quoted = '"Davis, Jr.",1,2\nÅsa Öberg,3,"Davis, Jr.",1\n'
    assert pairs(written(tmp_path, quoted)) == pairs(written(tmp_path, tabs))
    paths = "a.jpg\tb c.png\t1\nb c.png\td, e.JPG\t0\n"
    assert pairs(written(tmp_path, paths)) == [(A, B, True), (B, C, False)]
    assert pairs(written(tmp_path, "a.jpg;b c.png;1\nb c.png;d, e.JPG;0\n")) == [(A, B, True), (B, C, False)]


@pytest.mark.parametrize(
    "heading", ["image1,image2,same", "path_a,path_b,genuine", "id1 id2 match", "same,first,second"]
)
def test_names_of_columns_that_read_like_a_pair(tmp_path, heading):
    line = "1,a.jpg,c.jpg\n0,a.jpg,d.jpg\n" if heading.startswith("same") else "a.jpg,c.jpg,1\na.jpg,d.jpg,0\n"
    expected = [(A, ("c.jpg",), True), (A, ("d.jpg",), False)]
    assert pairs(written(tmp_path, f"{heading}\n{line}")) == expected


@pytest.mark.parametrize(
    "lines", ["a b 1\na c 0\n", "a b same\na c same\na d different\n", "id1/image1 id1/image2 same\nid2/1 id3/1 no\n"]
)
def test_images_that_are_called_as_columns_are(tmp_path, lines):
    assert len(pairs(written(tmp_path, lines))) == lines.count("\n")


def test_kaggles_csv_as_it_comes(tmp_path):
    text = "name,imagenum1,imagenum2,\nAbel_Pacheco,1,4,\nAbdel_Madi_Shabneh,1,Dean_Barker,1\n"
    assert pairs(written(tmp_path, text)) == [
        (("Abel_Pacheco", 1), ("Abel_Pacheco", 4), True),
        (("Abdel_Madi_Shabneh", 1), ("Dean_Barker", 1), False),
    ]
    mismatches = "name,imagenum1,name.1,imagenum2\nAdi,1,Bo,1\nBo,0,Bo,1\n"
    assert pairs(written(tmp_path, mismatches)) == [(("Adi", 1), ("Bo", 1), False), (("Bo", 0), ("Bo", 1), True)]


FLAGS = [("1", "0"), ("1", "-1"), ("True", "False"), ("true", "false"), ("TRUE", "FALSE"), ("same", "different")]


@pytest.mark.parametrize(("yes", "no"), [*FLAGS, ("1.0", "0.0"), ("Same", "diff"), ("genuine", "impostor"), ("y", "n")])
@pytest.mark.parametrize("separator", ["\t", ",", " ", ", "])
@pytest.mark.parametrize("heading", ["", "path_1{}path_2{}is_same\n"])
def test_flags_of_every_kind(tmp_path, yes, no, separator, heading):
    def listed(*rows):
        return written(tmp_path, heading.replace("{}", separator) + "".join(f"{separator.join(row)}\n" for row in rows))

    expected = [(("a.jpg",), ("p/b.png",), True), (("a.jpg",), ("p/c",), False)]
    assert pairs(listed(("a.jpg", "p/b.png", yes), ("a.jpg", "p/c", no))) == expected
    assert pairs(listed((yes, "a.jpg", "p/b.png"), (no, "a.jpg", "p/c"))) == expected
    assert pairs(listed(("3", "a.jpg", "p/b.png", yes), ("4", "a.jpg", "p/c", no))) == expected
    path = listed(("3", "17", "a.jpg", "p/b.png", yes), ("4", "18", "a.jpg", "p/c", no))
    assert pairs(path) == expected and read_list(path).folds == [3, 4]
    if not heading:
        path = listed(("a.jpg", yes), ("p/b.png", yes), ("a.jpg", no), ("p/c", no))
        assert pairs(path) == expected and read_list(path).folds == 10


def test_calfw_numbers_the_folds_of_genuine_pairs(tmp_path):
    lines = [f"{name}.jpg {fold}" for fold in (1, 2, 10) for name in "ab"] + ["a.jpg 0", "c.jpg 0"]
    assert [same for *_, same in pairs(written(tmp_path, "\n".join(lines)))] == [True, True, True, False]
    with pytest.raises(UserError, match=r"line 4 of .* is no pair: 'd.jpg 0'"):  # flags of a pair differ
        read_list(written(tmp_path, "a.jpg 1\nb.jpg 1\nc.jpg 1\nd.jpg 0\n"))
    with pytest.raises(UserError, match=r"line 3 of .* is no pair: 'c.jpg 1'"):  # nobody is left for the last one
        read_list(written(tmp_path, "a.jpg 1\nb.jpg 1\nc.jpg 1\n"))


def test_files_called_by_bare_numbers_are_no_numbers_of_images(tmp_path):
    assert pairs(written(tmp_path, "1 2 1\n2 3 0\n")) == [(("1",), ("2",), True), (("2",), ("3",), False)]
    assert pairs(written(tmp_path, "1 1\n2 1\n3 0\n4 0\n")) == [(("1",), ("2",), True), (("3",), ("4",), False)]
    # and people called by numbers are no flags and splits
    assert pairs(written(tmp_path, "1 1\n12 1 3\n12 1 13 1\n")) == [
        (("12", 1), ("12", 3), True),
        (("12", 1), ("13", 1), False),
    ]


def test_every_form_that_is_told_is_read(tmp_path):
    """What the message says, with names, numbers and a flag put in."""
    forms = [line.strip().split("  ")[0] for line in FORMS.splitlines() if line.startswith("    ")]
    assert len(forms) == 6
    for form, (flag, other) in itertools.product(forms, FLAGS):
        line = " ".join("7" if word in ("i", "j", "split") else word for word in form.split())
        text = "".join(line.replace("FLAG", each) + "\n" for each in (flag, flag, other, other))
        assert len(pairs(written(tmp_path, text))) == (2 if form.startswith("image") else 4)


@pytest.mark.parametrize(
    ("lines", "number", "line"),
    [
        (["Ann 1 2", "Ann one two"], 2, "Ann one two"),
        (["Ann 1 2", "", "# remark", "Ann 1"], 4, "Ann 1"),
        (["10 300", "Ann 1 2", "Ann 1 2 Bob 3"], 3, "Ann 1 2 Bob 3"),
        (["Ann one two", "Ann 1 2"], 1, "Ann one two"),  # a first line that is wrong is no head line
        (["a.jpg b.jpg 1", "a.jpg b.jpg 2"], 2, "a.jpg b.jpg 2"),
        (["a.jpg b.jpg 1", "a.jpg b.jpg maybe"], 2, "a.jpg b.jpg maybe"),
        (["a.jpg b.jpg 1", "Ann 1 2"], 2, "Ann 1 2"),
        (["a.jpg,b.jpg,True", "a.jpg,b.jpg"], 2, "a.jpg,b.jpg"),
        (["what is this"], 1, "what is this"),
        (["Ann 1 2", "x" * 500], 2, "x" * 80),
    ],
)
def test_a_wrong_line_is_told_with_its_number_and_the_forms(tmp_path, lines, number, line):
    with pytest.raises(UserError) as error:
        read_list(written(tmp_path, "\n".join(lines)))
    assert f"line {number} of {tmp_path}/list.txt is no pair: '{line}'. A list has one of" in str(error.value)
    assert FORMS in str(error.value)


def test_a_list_of_people_is_called_so(tmp_path):
    for text in (
        "name,images\nAJ_Cook,1\nAJ_Lamas,1\nAnn,9\n",
        "3\nAJ_Cook\t1\nAJ_Lamas\t1\nAnn\t9\n",
        "Ann 1\nBo 2\n",
    ):
        with pytest.raises(
            UserError, match="list.txt lists people and how many images each has: give the list of pairs"
        ):
            read_list(written(tmp_path, text))


def test_what_is_announced_is_checked(tmp_path):
    rows = ["Ann 1 2"] * 3 + ["Ann 1 Bob 2"] * 3
    for first in ("3 1", "1 3", "3", "6", "1 6"):
        assert len(pairs(written(tmp_path, "\n".join([first, *rows])))) == 6
    for first, announced in (("10 300", "6,000"), ("2", "4"), ("2 2", "8")):
        with pytest.raises(UserError, match=f"announces {announced} pairs and holds 6: get or write the list again"):
            read_list(written(tmp_path, "\n".join([first, *rows])))


def test_what_is_no_list_is_called_what_it_is(tmp_path):
    with pytest.raises(UserError, match="none.txt cannot be read: No such file"):
        read_list(str(tmp_path / "none.txt"))
    for content, reason in (
        (b"", "no list of pairs but empty"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"Ann\xff 1 2\n", "no text in UTF-8"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "no list of pairs but a pointer of Git LFS .*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>", "no list of pairs but a web page"),
        (b"\x1f\x8b\x08\0", "packed by gzip"),
        (pickle.dumps([1]), "a pickle"),
        (bytes(100), "all zeros"),
        (b"\x93NUMPY\x01", "a NumPy array"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            read_list(written(tmp_path, content))
        assert "list.txt" in str(error.value)


def test_noise_is_refused_and_never_crashes(tmp_path):
    words = [*COLUMN_NAMES.split()[:5], "Ann", "1", "0", "a.jpg", '"', '"Ann', "\t", ",", ";", "-1", "10 300", "²", "٣"]
    draw = random.Random(0)
    for _ in range(500):
        lines = [" ".join(draw.choices(words, k=draw.randint(0, 6))) for _ in range(draw.randint(1, 4))]
        try:
            listed = read_list(written(tmp_path, "\n".join(lines) or " "))
        except UserError:
            continue
        assert len(listed.first) == len(listed.second) == len(listed.same)
