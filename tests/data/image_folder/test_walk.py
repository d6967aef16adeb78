"""All images are found, whatever they are called; all else is counted by its reason."""

import os
import random

import pytest
from PIL import Image

from ffc_ds.data.decoding import decode
from ffc_ds.data.image_folder.walk import LeftOut, walk
from ffc_ds.errors import UserError
from tests.data.image_folder.folders import picture, write

KINDS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "AVIF", "MPO", "SGI", "PCX")
JPEG = picture(kind="JPEG")
LEFT_OUT = {
    "hidden": {".a.jpg": JPEG, ".cache/a.jpg": JPEG, ".gitkeep": b"", ".~lock": b"x"},
    "a companion of macOS": {"._a.jpg": JPEG, ".DS_Store": b"\0\0\0\1Bud1", "__MACOSX/a.jpg": JPEG, "Icon\r": b""},
    "of the system": {"Thumbs.db": b"\xd0\xcf\x11\xe0", "desktop.ini": b"[x]", "@eaDir/a.jpg/SYNO.jpg": JPEG},
    "a backup or unfinished copy": {
        **dict.fromkeys(["a.jpg~", "a.jpg.~1~", "#a.jpg#", "a.jpg.bak", "a.JPG.orig", "a.jpg.part"], JPEG),
        **{".#a.jpg": b"ann@host.1", ".a.jpg.swp": b"b0VIM"},
    },
    "empty": {"empty.jpg": b""},
    "no image that is read, but by its name": {
        "noise.jpg": bytes(range(99)),
        "text.png": b"what?",
        "zeros.jpg": bytes(99),
    },
    "a web page under an image's name": {"404.jpg": b"<!DOCTYPE html>\n<html>", "403.JPEG": b"\n<HTML><head>"},
    "a pointer of Git LFS (`git lfs pull` brings the file)": {"lfs.jpg": b"version https://git-lfs.github.com/spec/v1"},
    "HEIC, which is not read (convert it to JPEG)": {
        **{"phone.heic": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "phone.jpg": b"\0\0\0\x18ftypmif1"},
    },
    "text, from which no label is read (a person is a folder)": {
        **{"metadata.csv": b"file_name,label\n", "labels.txt": b"P1 was late", "boxes.json": b"{}", "empty.txt": b""},
    },
    "packed (unpack it; WebDataset's tars are for `prepare_data.py webdataset`)": {
        **{"a.zip": b"PK\3\4", "b.tar.gz": b"\x1f\x8b"},
    },
    "RecordIO (for `prepare_data.py recordio`)": {"train.rec": b"\x0a\x23\xd7\xce", "train.idx": b"1\t0\n"},
    "LMDB (for `prepare_data.py lmdb`)": {"data.mdb": b"\0" * 16},
    "of another kind": {
        **{"movie.mp4": b"\0\0\0\x20ftypisom\0\0\2\0", "model.h5": b"\x89HDF\r\n\x1a\n", "BMW": b"BMW is a car"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_told_by_its_content(tmp_path, kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"Pillow writes no {kind} here")
    names = ["a.jpg", "b.JPG", "c.jfif", "d.tif", "e.gif", "f", "g.txt", "h.x.y", "i.jpg.txt", "j (1).jpeg"]
    for name in names:
        (tmp_path / name).write_bytes(picture(kind=kind))
    found = walk(tmp_path)
    assert found.images == names and not found.left_out
    assert decode((tmp_path / "a.jpg").read_bytes(), 8).shape == (8, 8, 3)


def test_other_forms_of_the_kinds(tmp_path):
    grey = Image.new("L", (2, 2))
    grey.convert("1").save(tmp_path / "black and white.pbm")
    grey.convert("P").save(tmp_path / "palette.bmp")
    grey.save(tmp_path / "big.tif", big_tiff=True)
    grey.save(tmp_path / "codestream.j2k", no_jp2=True)
    (tmp_path / "comment.pgm").write_bytes(b"P5\n# by hand\n1 1\n255\n\0")
    (tmp_path / "old.gif").write_bytes(picture(kind="GIF").replace(b"GIF89a", b"GIF87a", 1))
    Image.new("I;16B", (2, 2)).save(tmp_path / "motorola.tif")
    assert (tmp_path / "motorola.tif").read_bytes().startswith(b"MM\0*")
    found = walk(tmp_path).images
    assert len(found) == 7 and [decode((tmp_path / name).read_bytes(), 8).shape for name in found] == [(8, 8, 3)] * 7


def test_all_else_is_counted_by_reason(tmp_path):
    for files in LEFT_OUT.values():
        for path, content in files.items():
            (tmp_path / "ann" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "ann" / path).write_bytes(content)
    write(tmp_path, "ann/1.png", "ann/deep/er/2.png")
    found = walk(tmp_path)
    assert found.images == ["ann/1.png", "ann/deep/er/2.png"]
    expected = {
        reason: {f"ann/{os.path.dirname(path).partition('/')[0] + '/' if '/' in path else path}" for path in files}
        for reason, files in LEFT_OUT.items()
    }
    assert {reason: set(paths) for reason, paths in found.left_out.items()} == expected


def test_the_order_is_that_of_names_folder_by_folder(tmp_path):
    paths = [f"{a}/{b}{c}" for a in ("a", "a b", "a-b", "B") for b in ("2/", "10/", "") for c in ("x", "X")]
    write(tmp_path, *random.Random(0).sample(paths, len(paths)), "z", "Z")
    found = walk(tmp_path)
    assert found.images == ["Z", "z", *sorted(paths, key=lambda path: path.split("/"))]
    folders = {folder for path in paths for folder in (path.split("/")[0], os.path.dirname(path))}
    assert found.folders == sorted(folders, key=lambda path: path.split("/"))


def test_many_files_are_in_their_order(tmp_path):
    names = [f"p{i // 50:03}/{i:04}" for i in range(3000)]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"P5 1 1 255\n" if i % 7 else b"")
    found = walk(tmp_path)
    assert found.images == [name for i, name in enumerate(names) if i % 7]
    assert found.left_out["of another kind"] == names[::7]


def test_links_are_followed(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", "bob/x/1", "2.jpg")
    root = write(tmp_path / "root", "ann/1.jpg", "ann/more/2.jpg")
    (root / "bob").symlink_to(elsewhere / "bob")
    (root / "carl").mkdir()
    (root / "carl" / "a.jpg").symlink_to(elsewhere / "2.jpg")
    (root / "carl" / "ann").symlink_to("../ann/more")  # a sister's folder is no loop
    (root / "dora").symlink_to("bob")
    (root / "eve.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        found = walk(place)
        assert found.images == [
            *("ann/1.jpg", "ann/more/2.jpg", "bob/x/1", "carl/a.jpg", "carl/ann/2.jpg", "dora/x/1")
        ] and dict(found.left_out) == {"a link to nothing": ["eve.jpg"]}  # fmt: skip
        assert found.root == str(place)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("root/ann/loop", "loop"),
        ("root/ann/loop", "."),
        ("root/ann/deep/loop", ".."),
        ("root/loop", "."),
        ("root/loop", "/"),
        ("root/ann/loop", "{}"),
        ("root/ann/loop.jpg", "loop.jpg"),
    ],
)
def test_loops_are_refused_by_the_name_of_the_link(tmp_path, link, target):
    write(tmp_path / "root", "ann/deep/1.jpg")
    (tmp_path / link).symlink_to(target.format(tmp_path))
    with pytest.raises(
        UserError, match=f"^{tmp_path / link} is a link to {target.format(tmp_path)}, .*: remove the link$"
    ):
        walk(tmp_path / "root")


def test_loops_over_several_links_are_refused(tmp_path):
    write(tmp_path, "root/ann/1.jpg", "b/2.jpg", "c/3.jpg")
    (tmp_path / "root" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_c").symlink_to(tmp_path / "c")
    assert walk(tmp_path / "root").images == ["ann/1.jpg", "to_b/2.jpg", "to_b/to_c/3.jpg"]
    (tmp_path / "c" / "to_b").symlink_to("../b")
    with pytest.raises(UserError, match="root/to_b/to_c/to_b is a link to ../b, "):
        walk(tmp_path / "root")
    (tmp_path / "c" / "to_b").unlink()
    (tmp_path / "c" / "back").symlink_to(tmp_path / "root")
    with pytest.raises(UserError, match="root/to_b/to_c/back is a link to "):
        walk(tmp_path / "root")


def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path, "ann/1.jpg")
    os.mkfifo(tmp_path / "ann" / "pipe.jpg")
    found = walk(tmp_path)
    assert found.images == ["ann/1.jpg"] and dict(found.left_out) == {"empty": ["ann/pipe.jpg"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read(tmp_path):
    write(tmp_path, "ann/1.jpg", "ann/2.jpg", "bob/3.jpg")
    (tmp_path / "ann" / "2.jpg").chmod(0)
    (tmp_path / "bob").chmod(0)
    found = walk(tmp_path)
    assert found.images == ["ann/1.jpg"]
    assert dict(found.left_out) == {"unreadable (Permission denied)": ["bob/", "ann/2.jpg"]}
    (tmp_path / "bob").chmod(0o700)


def test_names_that_are_no_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.makedirs(folder)
    for name in (b"\xff.png", b"\xfe.txt"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(picture() if name.endswith(b"png") else b"x")
    found = walk(tmp_path)
    assert found.images == ["caf\udce9/\udcff.png"]
    assert str(found.left_out).encode().endswith(rb"(a person is a folder): caf\xe9/\xfe.txt")


def test_what_is_no_folder(tmp_path):
    write(tmp_path, "a.jpg")
    assert walk(tmp_path).images == ["a.jpg"]
    for name, reason in (
        ("a.jpg", "is a file: give the folder that it lies in"),
        ("none", "^there is no folder .*none: ch"),
    ):
        with pytest.raises(UserError, match=reason):
            walk(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert walk(tmp_path / "empty")[1:] == ([], [], {})


def test_what_is_left_out_is_said_in_a_line_with_a_few_names():
    left_out = LeftOut()
    assert str(left_out) == "left out: nothing"
    left_out["hidden"] += [".git/"]
    left_out["empty"] += [f"{i}.jpg" for i in range(1234)]
    assert str(left_out) == "left out: 1 x hidden: .git/; 1,234 x empty: 0.jpg, 1.jpg, 2.jpg, ..."
