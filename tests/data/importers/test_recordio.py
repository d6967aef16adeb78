import random
import struct
from bisect import bisect_right
from pathlib import Path

import pytest

from ffc_ds.data.importers import recordio
from ffc_ds.data.importers.plan import Record
from ffc_ds.data.importers.recordio import plan_recordio
from ffc_ds.errors import UserError
from tests.data.importers.formats import collect, imported, pictures

MAGIC = struct.pack("<I", 0xCED7230A)
# Written by mxnet 1.9.1: images 1 to 4 (PNGs of one red pixel of that value, label 1 for images 2 and 3; these two have
# the magic number in a chunk "maGc"), identities 5 and 6, and last the header, record 0.
MXNET_MADE = Path(__file__).parent / "mxnet_made"


def record(data: bytes) -> bytes:
    """As dmlc-core's RecordIOWriter::WriteRecord: cut at aligned magic numbers."""
    out, start = b"", 0
    for i in range(0, len(data) // 4 * 4, 4):
        if data[i : i + 4] == MAGIC:
            out += MAGIC + struct.pack("<I", (1 if start == 0 else 2) << 29 | i - start) + data[start:i]
            start = i + 4
    out += MAGIC + struct.pack("<I", (3 if start else 0) << 29 | len(data) - start) + data[start:]
    return out + bytes(-len(data) % 4)


def packed(label, image: bytes, key: int = 0) -> bytes:
    """As mxnet.recordio.pack."""
    if isinstance(label, float):
        return struct.pack("<IfQQ", 0, label, key, 0) + image
    return struct.pack(f"<IfQQ{len(label)}f", len(label), 0, key, 0, *label) + image


def write_set(folder: Path, records: list[tuple[int, bytes]], identities: int | None = None) -> Path:
    """records: (key, data) in the order of writing."""
    folder.mkdir(exist_ok=True)
    rec, idx = b"", ""
    for key, data in records:
        idx += f"{key}\t{len(rec)}\n"
        rec += record(data)
    (folder / "train.rec").write_bytes(rec)
    (folder / "train.idx").write_text(idx)
    if identities is not None:
        (folder / "property").write_text(f"{identities},112,112")
    return folder


def images_with_magic() -> list[bytes]:
    """JPEGs and PNGs are read up to their end, whatever follows, so that these are images still."""
    return [image + b"x" * (i % 4) + MAGIC * (i % 3) + b"end" for i, image in enumerate(pictures(12))]


@pytest.mark.parametrize("header", ["first", "last", "none"])
def test_both_header_flavours_arrive_identical(tmp_path, header):
    images = images_with_magic()
    labels = [i // 3 for i in range(12)]
    records = [
        (key, packed(float(label) if key % 2 else [float(label), 0.0], image, key))
        for key, (label, image) in enumerate(zip(labels, images, strict=True), 1)
    ]
    described = [(13 + i, packed([1.0 + 3 * i, 4.0 + 3 * i], b"")) for i in range(4)]
    zero = [(0, packed([13.0, 17.0], b""))]
    records = {"first": zero + records + described, "last": records + described + zero, "none": records}[header]
    source = write_set(tmp_path / "set", records, identities=4)
    expected = [(image, label, str(label)) for image, label in zip(images, labels, strict=True)]
    assert imported(plan_recordio(str(source), shard_images=5), tmp_path / "out") == expected
    # the files that would hold identities only are not there
    assert len(list((tmp_path / "out").glob("train-*-of-00003.parquet"))) == 3


def test_a_set_that_mxnet_wrote():
    records, broken = collect(plan_recordio(str(MXNET_MADE), shard_images=2))
    assert [(r.key, r.label) for r in records] == [("1", 0), ("2", 1), ("3", 1), ("4", 0)] and not broken
    assert all(r.image.startswith(b"\x89PNG") and r.image.endswith(b"IEND\xaeB`\x82") for r in records)
    assert [r.image.count(MAGIC) for r in records] == [0, 1, 5, 0]
    # the writer of these tests writes the same bytes
    rebuilt = [packed(0.0, records[0].image, 1), packed(1.0, records[1].image, 2)]
    rebuilt += [packed([1.0, 0.0], records[2].image, 3), packed(0.0, records[3].image, 4)]
    rebuilt += [packed([1.0, 2.0], b"", 5), packed([2.0, 4.0], b"", 6), packed([5.0, 7.0], b"")]
    assert b"".join(map(record, rebuilt)) == (MXNET_MADE / "train.rec").read_bytes()


def test_a_file_beside_its_index_under_another_name(tmp_path):
    source = write_set(tmp_path / "set", [(0, packed(3.0, pictures(1)[0]))])
    for ending in ("rec", "idx"):
        (source / f"train.{ending}").rename(source / f"val.{ending}")
    records, _ = collect(plan_recordio(str(source / "val.rec")))
    assert [(r.key, r.label) for r in records] == [("0", 3)]


def write_twelve(folder: Path) -> Path:
    """Images with magic numbers in them, and the records that list the four identities."""
    images = images_with_magic()
    records = [(0, packed([13.0, 17.0], b""))]
    records += [(i + 1, packed(float(i // 3), image, i + 1)) for i, image in enumerate(images)]
    records += [(13 + i, packed([1.0 + 3 * i, 4.0 + 3 * i], b"")) for i in range(4)]
    return write_set(folder, records, identities=4)


TWELVE = [(image, i // 3, str(i // 3)) for i, image in enumerate(images_with_magic())]


def read(source: Path, shard_images: int = 5):
    """(image, label, identity) of each record, and the broken ones."""
    records, broken = collect(plan_recordio(str(source), shard_images))
    return [(r.image, r.label, r.identity) for r in records], broken


@pytest.mark.parametrize("shard_images", [1, 2, 5, 100])
def test_without_an_index_the_records_are_found_by_scanning(tmp_path, shard_images, capsys):
    source = write_twelve(tmp_path / "set")
    (source / "train.idx").unlink()
    assert read(source, shard_images) == (TWELVE, [])
    assert "there is no " in (out := capsys.readouterr().out) and "train.rec are found by scanning" in out
    plan = plan_recordio(str(source), shard_images)
    counts = [sum(isinstance(each, Record) for each in job()) for job in plan.jobs]
    assert max(counts) <= 2 * shard_images + 1 and (shard_images > 5 or sum(map(bool, counts)) > 2)
    if shard_images == 5:
        assert imported(plan, tmp_path / "out", workers=2) == TWELVE


def lines_of(source: Path) -> list[bytes]:
    return (source / "train.idx").read_bytes().splitlines()


def moved(lines, number, by):
    key, offset = lines[number].split(b"\t")
    return [*lines[:number], b"%s\t%d" % (key, int(offset) + by), *lines[number + 1 :]]


INDEXES = {
    "one offset a little off": lambda lines: moved(lines, 4, 4),
    "an offset inside of an image": lambda lines: moved(lines, 5, 40),
    "an offset that is no multiple of 4": lambda lines: moved(lines, 9, 1),
    "an offset far behind": lambda lines: moved(lines, 7, 10**6),
    "all off": lambda lines: [b"%d\t%d" % (i, 12 * i) for i in range(len(lines))],
    "cut": lambda lines: lines[:8],
    "its first half lost": lambda lines: [lines[0][:1], *lines[8:]],
    "cut in a line": lambda lines: [*lines[:6], lines[6].partition(b"\t")[0]],
    "empty": lambda lines: [],
    "backwards": lambda lines: lines[::-1],
    "twice": lambda lines: lines + lines,
    "a web page": lambda lines: [b"<html>", b"404"],
}


@pytest.mark.parametrize("kind", INDEXES)
def test_no_image_is_lost_to_a_wrong_index(tmp_path, kind):
    source = write_twelve(tmp_path / "set")
    (source / "train.idx").write_bytes(b"".join(line + b"\n" for line in INDEXES[kind](lines_of(source))))
    assert read(source) == (TWELVE, [])


def test_windows_texts_do_no_harm(tmp_path, capsys):
    source = write_twelve(tmp_path / "set")
    for name in ("train.idx", "property"):
        content = (source / name).read_bytes().replace(b"\n", b"\r\n")
        (source / name).write_bytes(b"\xef\xbb\xbf" + content + b"\r\n")
    records, broken = collect(plan_recordio(str(source)))
    assert [r.key for r in records] == [str(key) for key in range(1, 13)] and not broken
    assert not capsys.readouterr().out
    (source / "property").write_bytes(b"\xef\xbb\xbf2,112,112")
    assert len(read(source)[1]) == 6  # it was read
    (source / "train.idx").write_text("0\t0\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"train\.idx is a text in UTF-16: save it as UTF-8"):
        plan_recordio(str(source))


def test_an_index_of_some_of_the_records_is_followed(tmp_path):
    source = write_twelve(tmp_path / "set")
    lines = lines_of(source)
    (source / "train.idx").write_bytes(b"\n".join([lines[2], lines[7], *lines[12:]]))
    assert read(source, 2) == ([TWELVE[1], TWELVE[6], TWELVE[11]], [])


@pytest.mark.parametrize("indexed", [True, False])
def test_damaged_bytes_cost_only_the_records_that_they_are_in(tmp_path, indexed):
    source = write_twelve(tmp_path / "set")
    rec = (source / "train.rec").read_bytes()
    starts = [int(line.partition(b"\t")[2]) for line in lines_of(source)]
    ends = [*starts[1:], len(rec)]
    if not indexed:
        (source / "train.idx").unlink()
    rng = random.Random(0)
    for trial in range(150):
        length = (1, 4, 8, 40, 1000, 3000)[trial % 6]
        # by turns in the first bytes of a record and anywhere
        place = rng.choice(starts[1:]) + rng.randrange(8) if trial % 2 else rng.randrange(len(rec) - length)
        junk = bytes(length) if trial % 3 else rng.randbytes(length)
        (source / "train.rec").write_bytes((rec[:place] + junk + rec[place + length :])[: len(rec)])
        hit = {key for key in range(17) if starts[key] < place + length and place < ends[key]}
        records, broken = collect(plan_recordio(str(source), rng.choice([1, 3, 7, 100])))
        found = [(r.image, r.label, r.identity) for r in records]
        untouched = [one for key, one in enumerate(TWELVE, 1) if key not in hit]
        assert [one for one in found if one in untouched] == untouched
        named = [key_of(each.key, starts) for each in (*records, *broken)]
        assert {key_of(key, starts) for key, _ in broken} <= hit
        if indexed:
            assert sorted(key for key in named if 1 <= key <= 12) == list(range(1, 13))
        else:
            assert set(range(1, 13)) - set(named) <= hit and (broken or len(found) >= 12)


def key_of(name: str, starts: list[int]) -> int:
    """The number of a record, whose name is that number, or a byte in it."""
    return bisect_right(starts, int(name.removeprefix("byte "))) - 1 if name.startswith("byte") else int(name)


def test_the_keys_of_broken_records_are_not_sought_among_all(tmp_path, monkeypatch):
    source = write_set(tmp_path / "set", [(i + 1, b"no record") for i in range(300)])
    compared, entries = [], recordio._entries

    class Offset(int):
        def __lt__(self, other):
            compared.append(self)
            return int(self) < other

        def __ge__(self, other):
            compared.append(self)
            return int(self) >= other

    monkeypatch.setattr(recordio, "_entries", lambda lines: ((Offset(at), key) for at, key in entries(lines)))
    (job,) = plan_recordio(str(source)).jobs
    compared.clear()
    assert [broken.key for broken in job()] == [str(i + 1) for i in range(300)]
    assert len(compared) < 300 * 25  # two look-ups in 300 keys, each of at most 9 steps


def test_a_region_of_damage_is_told(tmp_path):
    source = write_twelve(tmp_path / "set")
    starts = [int(line.partition(b"\t")[2]) for line in lines_of(source)]
    rec = bytearray((source / "train.rec").read_bytes())
    rec[starts[3] : starts[5] + 8] = bytes(starts[5] + 8 - starts[3])
    (source / "train.rec").write_bytes(rec)
    reason = f"no magic number at byte {starts[3]}, where a record should start: {starts[6] - starts[3]} bytes are"
    found, broken = read(source)
    assert found == TWELVE[:2] + TWELVE[5:]
    assert [key for key, _ in broken] == ["3", "4", "5"] and all(text.startswith(reason) for _, text in broken)
    (source / "train.idx").unlink()
    found, ((key, text),) = read(source)
    assert found == TWELVE[:2] + TWELVE[5:] and key == f"byte {starts[3]}" and text.startswith(reason)


def test_a_length_that_is_too_small_is_told_from_a_damaged_neighbour(tmp_path):
    source = write_twelve(tmp_path / "set")
    starts = [int(line.partition(b"\t")[2]) for line in lines_of(source)]
    whole = (source / "train.rec").read_bytes()
    (source / "train.idx").unlink()
    short = bytearray(whole)
    short[starts[1] + 4 : starts[1] + 8] = struct.pack("<I", 100)
    for content, key in ((short, 1), (whole[: starts[2]] + bytes(4) + whole[starts[2] + 4 :], 2)):
        (source / "train.rec").write_bytes(content)
        found, broken = read(source)
        assert found == [one for i, one in enumerate(TWELVE, 1) if i != key]
        assert [name for name, _ in broken] == [f"byte {starts[key]}"]


def test_a_file_that_is_cut_misses_what_the_index_names(tmp_path):
    source = write_twelve(tmp_path / "set")
    starts = [int(line.partition(b"\t")[2]) for line in lines_of(source)]
    rec = (source / "train.rec").read_bytes()
    (source / "train.rec").write_bytes(rec[: starts[9] + 50])
    found, broken = read(source)
    assert found == TWELVE[:8]
    assert [key for key, _ in broken] == [str(key) for key in range(9, 17)]
    assert all(reason.startswith("truncated: the file ends") for _, reason in broken)
    (source / "train.idx").unlink()
    found, broken = read(source)
    assert found == TWELVE[:8] and broken == [(f"byte {starts[9]}", "truncated: the file ends in it")]


def test_a_file_whose_first_bytes_are_damaged(tmp_path):
    source = write_twelve(tmp_path / "set")
    rec = (source / "train.rec").read_bytes()
    (source / "train.rec").write_bytes(bytes(8) + rec[8:])
    assert read(source) == (TWELVE, [("0", read(source)[1][0].reason)])
    (source / "train.idx").unlink()
    assert read(source)[0] == TWELVE and read(source)[1][0].key == "byte 0"


def test_every_kind_of_damage_is_named_with_its_key(tmp_path):
    image = pictures(1)[0]
    bad_labels = [0.5, -1.0, float("nan"), float("inf"), 2.0**25, 7.0]
    records = [(key, packed(label, image)) for key, label in enumerate(bad_labels, 1)]
    records += [(7, b"short"), (8, struct.pack("<IfQQ", 2**31, 0, 0, 0) + image), (9, packed(1.0, image))]
    good = [(key, packed(1.0, image)) for key in range(10, 16)]
    source = write_set(tmp_path / "set", [*records, *good, (16, packed([0.0, 0.0], b""))], identities=7)
    rec = bytearray((source / "train.rec").read_bytes())
    start = [int(line.partition(b"\t")[2]) for line in lines_of(source)]
    rec[start[9]] ^= 1  # key 10: magic number
    rec[start[10] + 7] |= 2 << 5  # key 11: a middle part without a first one
    rec[start[11] + 7] |= 1 << 5  # key 12: a first part, and a whole record where its next part should be
    rec[start[12] + 4 : start[12] + 8] = struct.pack("<I", 2**29 - 1)  # key 13: longer than the file
    (source / "train.rec").write_bytes(rec)
    records, broken = collect(plan_recordio(str(source)))
    assert [r.key for r in records] == ["9", "14", "15", "16"]  # the last has no bytes, as the check of images says
    reasons = dict(broken)
    assert list(reasons) == [str(key) for key in (*range(1, 9), 10, 11, 12, 13)]
    for keys, reason in {
        (1, 2, 3, 4, 5): "not an integer from 0",
        (6,): "property says that there are 7",
        (7, 8): "too short for its header",
        (10, 11): f"no magic number at byte {start[9]}",
        (12,): "its parts are out of order",
        (13,): "its length is wrong",
    }.items():
        for key in keys:
            assert reason in reasons[str(key)]


def test_what_is_no_recordio_set_is_refused(tmp_path):
    source = write_set(tmp_path / "set", [(0, packed(0.0, pictures(1)[0]))])

    def refused(reason, path=source):
        with pytest.raises(UserError, match=reason):
            plan_recordio(str(path))

    refused("there is no .*none", tmp_path / "none")
    (source / "property").write_text("many,112,112")
    refused("property does not start with a number of identities")
    (source / "property").unlink()
    (source / "train.rec").write_bytes(pictures(1)[0])
    refused(r"train\.rec is not a RecordIO file: it is a JPEG image")
    (source / "train.rec").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(r"train\.rec is not a RecordIO file: it is a pointer of Git LFS \(`git lfs pull` brings")
    (source / "train.rec").write_bytes(b"")
    refused(r"train\.rec is empty")
    with pytest.raises(UserError, match="shard_images is 0"):
        plan_recordio(str(source), shard_images=0)
