"""Pair files: what is written is read, foreign dialects are read, attacks and damage are refused and never run."""

import gzip
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_files import read_pair_bin, write_pair_bin
from ffc_ds.evaluation.verification import verify_pairs

LFW = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lfw" / "heldout.bin"

SAME = np.array([True, False, True])
IMAGES = [b"\xff\xd8\xff" + bytes(range(256)) * 3 + bytes([i + 1]) for i in range(6)]


def stored(tmp_path, content, protocol=4):
    path = tmp_path / "pairs.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def refused(path, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_pair_bin(path)
    assert str(path) in str(error.value)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "pairs.bin"
    write_pair_bin(path, IMAGES, SAME)
    images, same = read_pair_bin(path)
    assert images == IMAGES and same.dtype == bool and same.tolist() == SAME.tolist()
    with open(path, "rb") as file:  # as InsightFace reads it
        assert pickle.load(file, encoding="bytes") == (IMAGES, SAME.tolist())
    with pytest.raises(ValueError, match="two images a flag"):
        write_pair_bin(path, IMAGES[:-1], SAME)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_dialect_is_read(tmp_path, protocol):
    arrays = [np.frombuffer(image, dtype=np.uint8) for image in IMAGES]
    objects, objects_of_arrays = np.empty((2, 6), dtype=object)
    objects[:] = IMAGES
    for i, array in enumerate(arrays):
        objects_of_arrays[i] = array
    kinds_of_images = [
        *(IMAGES, tuple(IMAGES), arrays, [array.copy() for array in arrays], list(map(bytearray, IMAGES))),
        *([array[:, None] for array in arrays], objects, objects_of_arrays, np.array(IMAGES)),
        [array.view(np.int8) for array in arrays],
    ]
    for images in kinds_of_images:
        read, same = read_pair_bin(stored(tmp_path, (images, SAME.tolist()), protocol))
        assert read == IMAGES and same.dtype == bool and same.tolist() == SAME.tolist()


NUMBERS = [np.bool_, *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8", "g", ">i4", ">f8"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_flags_of_every_kind_are_read(tmp_path, protocol):
    true_false = SAME.tolist()
    kinds = [true_false, tuple(true_false), [1, 0, 1], [1.0, 0.0, 1.0], [1, -1, 1], ["True", "False", "True"]]
    kinds += [np.array(true_false, dtype=object), np.array(["same", "different", "same"]), np.array([1, -1, 1])]
    for number in NUMBERS:
        array = SAME.astype(number)
        kinds += [array, array[:, None], list(array), tuple(array), [np.array(flag) for flag in array]]
        kinds += [[np.array([flag]) for flag in array], np.asfortranarray(array[None])]
    for flags in kinds:
        read, same = read_pair_bin(stored(tmp_path, (IMAGES, flags), protocol))
        assert read == IMAGES and same.dtype == bool and same.tolist() == SAME.tolist(), flags
        read_pair_bin(stored(tmp_path, [IMAGES, flags], protocol))


def test_strings_of_python_2_are_read(tmp_path):
    def string(data):
        return pickle.BINSTRING + struct.pack("<i", len(data)) + data

    items = b"".join(string(image) for image in IMAGES)
    flags = pickle.NEWTRUE + pickle.NEWFALSE + pickle.NEWTRUE
    content = pickle.PROTO + b"\x02](" + items + b"e](" + flags + b"e" + pickle.TUPLE2 + b"."
    assert pickle.loads(content, encoding="bytes") == (IMAGES, SAME.tolist())
    images, same = read_pair_bin(stored(tmp_path, content))
    assert images == IMAGES and same.tolist() == SAME.tolist()


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_attack_is_refused_and_never_run(tmp_path, protocol):
    witness = tmp_path / "executed"
    attacks = [
        Call(os.mkdir, str(witness)),
        Call(eval, f"__import__('os').mkdir({str(witness)!r})"),
        Call(np.save, str(witness), np.zeros(1)),
        Call(getattr, [], "append"),
        Call(memoryview, b"1"),
    ]
    for attack in attacks:
        for content in (attack, (IMAGES, attack), ([attack, *IMAGES], SAME.tolist())):
            refused(stored(tmp_path, content, protocol), "it refers to")
    assert not list(tmp_path.glob("executed*"))


def test_names_within_permitted_modules_are_refused(tmp_path):
    for name in (b"cnumpy\nload\n.", b"c_codecs\nlookup\n.", b"cnumpy.core.multiarray\nfromfile\n."):
        refused(stored(tmp_path, name), "it refers to")
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__getattr__\x93."
    refused(stored(tmp_path, dotted), "it refers to numpy.ndarray.__getattr__")


def test_nothing_in_the_process_can_be_changed(tmp_path):
    set_attribute = b"\x80\x02c_codecs\nencode\n}X\x06\x00\x00\x00secretK\x01sb."
    refused(stored(tmp_path, set_attribute), "it holds a dictionary")


@pytest.mark.parametrize(
    "claim, reason",
    [
        (b"\x80\x04]r\xff\xff\xff\x7f.", "memo index 2147483647 is absurd"),
        (b"]p99999999999\n.", "memo index 99999999999 is absurd"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"short.", "expected 1099511627776 bytes"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].", "truncated"),
        # an array of 2^31 elements, which numpy itself would allocate
        (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R.",
            "not hold",
        ),
    ],
)
def test_absurd_sizes_are_refused_before_they_cost_anything(tmp_path, claim, reason):
    refused(stored(tmp_path, claim), reason)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_no_bytes_are_made_of_a_number(tmp_path, kind):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(stored(tmp_path, (IMAGES, Call(kind, 2**44)), protocol), "not a valid InsightFace .bin")


def test_flags_that_unfold_without_end_cost_nothing(tmp_path):
    flag = [True]
    for _ in range(100):
        flag = [flag, flag]
    refused(stored(tmp_path, (IMAGES, [flag, True, False])), "not all booleans, flag 0 first")


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "huge.bin"
    with open(path, "wb") as file:
        file.truncate(2**40)
    refused(path, "at most 2147483648 bytes")


def test_every_truncation_is_refused(tmp_path):
    content = pickle.dumps((IMAGES, SAME.tolist()), protocol=4)
    for length in [*range(60), *range(60, len(content), 97), len(content) - 1]:
        refused(stored(tmp_path, content[:length]), "cut off after" if length else "it is empty")


def test_random_damage_is_refused_or_harmless(tmp_path):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(pickle.dumps(([np.frombuffer(IMAGES[0], np.uint8)] * 6, list(SAME)), 4), dtype=np.uint8)
    for _ in range(500):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=2)] = rng.integers(256, size=2)
        path = stored(tmp_path, damaged.tobytes())
        try:
            images, same = read_pair_bin(path)
        except UserError:
            continue
        assert len(images) == 2 * len(same)


@pytest.mark.parametrize(
    "content, reason",
    [
        ((IMAGES[:-1], SAME.tolist()), "5 images and 3 flags"),
        (([], []), "0 images and 0 flags"),
        (IMAGES, "does not hold a list of images and a list of flags"),
        ((IMAGES, SAME.tolist(), 1), "does not hold a list of images and a list of flags"),
        (([*IMAGES[:-1], b"plain text"], SAME.tolist()), "item 5 is not an encoded image"),
        (([*IMAGES[:-1], "text"], SAME.tolist()), "item 5 is not an encoded image"),
        (([np.zeros(9), *IMAGES[1:]], SAME.tolist()), "item 0 is not an encoded image"),
        ((IMAGES, [True, False, 2]), "not all booleans"),
        ((IMAGES, [True, False, None]), "not all booleans"),
        ((IMAGES, [True, False, np.array([1, 0])]), "not all booleans, flag 2 first"),
        ((IMAGES, np.array([1, 0, 7])), "not all booleans, flag 2 first"),
        ((IMAGES, np.array([1, 0, 0.5])), "not all booleans, flag 2 first"),
        ((IMAGES, np.array([1, 0, 1j])), "an array of type 'c16'"),
        ((IMAGES, 7), "not a list of flags"),
        (b"name\t1\t2\n", "it is no pickle, or is cut off after 9 bytes"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, reason):
    refused(stored(tmp_path, content), reason)


def test_what_is_something_else_is_called_what_it_is(tmp_path):
    whole = pickle.dumps((IMAGES, SAME.tolist()))
    path = tmp_path / "pairs.bin"

    def called(reason):
        refused(path, f"not a valid InsightFace .bin: it is {reason}")

    for content, kind in ((b"", "empty"), (bytes(99), "all zeros")):
        path.write_bytes(content)
        called(kind)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 64\n")
    called("a pointer of Git LFS .`git lfs pull` brings")
    for page in ("<!DOCTYPE html>\n<html>", "\n<html lang=en>", "<HTML>", "\ufeff<!doctype html>"):
        path.write_text(page, encoding="utf-8")
        called("a web page")
    path.write_bytes(gzip.compress(whole))
    called("packed by gzip: unpack it")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lfw.bin", whole)
    called("a zip archive: unpack it")
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("lfw.bin"))
    called("a tar archive: unpack it")
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    called("a NumPy array")
    with open(path, "wb") as file:
        np.savez(file, images=np.zeros(3))
    called(r"an archive of NumPy arrays \(.npz\)")
    with open(path, "wb") as file:
        np.savez_compressed(file, images=np.zeros(3))
    called(r"an archive of NumPy arrays \(.npz\)")
    torch.save([torch.zeros(3)], path)
    called("a file of torch.save")
    path.write_bytes(b"\x0a\x23\xd7\xce" + bytes(100))
    called("RecordIO")
    path.write_bytes(IMAGES[0])
    called("a JPEG image")


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.bin", "No such file")
    refused(tmp_path, "not a file")


@pytest.mark.skipif(not LFW.exists(), reason="the shared LFW pairs are not here")
def test_raw_pixels_barely_verify_real_faces():
    images, same = read_pair_bin(LFW)
    assert len(images) == 12000 and same.sum() == 3000
    pixels = {image: simplejpeg.decode_jpeg(image, "RGB") for image in set(images)}
    assert {each.shape for each in pixels.values()} == {(112, 112, 3)}
    embedded = np.array([pixels[image][::4, ::4].ravel() for image in images]) / 127.5 - 1
    result = verify_pairs(embedded[::2], embedded[1::2], same)
    assert result.accuracy == pytest.approx(0.62, abs=0.01)
