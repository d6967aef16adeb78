import struct
from pathlib import Path

import pytest

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


def test_every_kind_of_damage_is_named_with_its_key(tmp_path):
    image = pictures(1)[0]
    bad_labels = [0.5, -1.0, float("nan"), float("inf"), 2.0**25, 7.0]
    records = [(key, packed(label, image)) for key, label in enumerate(bad_labels, 1)]
    records += [(7, b"short"), (8, struct.pack("<IfQQ", 2**31, 0, 0, 0) + image), (9, packed([0.0, 0.0], b""))]
    good = [(key, packed(1.0, image)) for key in range(10, 16)]
    source = write_set(tmp_path / "set", records + good, identities=7)
    rec = bytearray((source / "train.rec").read_bytes())
    lines = (source / "train.idx").read_text().splitlines()
    start = [int(line.split("\t")[1]) for line in lines]
    rec[start[9]] ^= 1  # key 10: magic number
    rec[start[10] + 7] |= 2 << 5  # key 11: a middle part without a first one
    rec[start[11] + 7] |= 1 << 5  # key 12: a first part, and a whole record where its next part should be
    rec[start[12] + 4 : start[12] + 8] = struct.pack("<I", 2**29 - 1)  # key 13: longer than the file
    del rec[-30:]  # key 15
    (source / "train.rec").write_bytes(rec)
    (source / "train.idx").write_text("\n".join(lines) + "\n16\n17\tx\n18\t-5\n19\t99999999\nword\n")
    records, broken = collect(plan_recordio(str(source)))
    assert [r.key for r in records] == ["9", "14"]  # the first has no bytes, which the check of images says
    reasons = dict(broken)
    assert list(reasons) == [str(key) for key in (*range(1, 9), 10, 11, 12, 13, 15, 16, 17, 18, 19)] + ["word"]
    for keys, reason in {
        (1, 2, 3, 4, 5): "not an integer from 0",
        (6,): "property says that there are 7",
        (7, 8): "too short for its header",
        (10,): f"no magic number at byte {start[9]}",
        (11, 12): "its parts are out of order",
        (13, 15, 19): "truncated",
        (16, 17, 18, "word"): "not a key and an offset",
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
    (source / "train.idx").write_text("")
    refused("train.idx is empty")
    (source / "train.idx").unlink()
    refused(r"there is no .*train\.idx")
    (source / "train.idx").write_text("0\t0\n")
    (source / "train.rec").write_bytes(pictures(1)[0])
    refused(r"train\.rec is not a RecordIO file")
    with pytest.raises(UserError, match="shard_images is 0"):
        plan_recordio(str(source), shard_images=0)
