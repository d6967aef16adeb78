"""InsightFace's sets: `train.rec`, `train.idx`, `property`, in MXNet's RecordIO, read without MXNet.

A record is a magic number, a word with 3 bits that say which part of a record this is and 29 bits of length, the data,
and padding to 4 bytes. Data that contain the magic number are cut there, and the number is left out. The data of an
image are a header (flag, float label, two ids), `flag` further float labels if flag is not 0, and the encoded image.
"""

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ffc_ds.data.importers.plan import Broken, Lines, Plan, Record, check_count, divide_lines
from ffc_ds.errors import UserError

MAGIC = struct.pack("<I", 0xCED7230A)
HEADER = struct.Struct("<IfQQ")
WHOLE, FIRST, LAST = 0, 1, 3
LARGEST_LABEL = 2**24  # beyond it a float32 skips integers, and two identities would be one


def plan_recordio(source: str, shard_images: int = 20_000) -> Plan:
    """Plan the import of an InsightFace set, with or without the header record that lists its identities.

    Args:
        source: folder with train.rec, train.idx and perhaps property, or a .rec file with its .idx beside it.
        shard_images: images of one parquet file.
    """
    check_count(shard_images)
    rec = Path(source) / "train.rec" if Path(source).is_dir() else Path(source)
    idx = rec.with_suffix(".idx")
    for path, content in ((rec, "images and labels"), (idx, "where each record starts")):
        if not path.is_file():
            raise UserError(f"there is no {path} ({content}): give the folder with train.rec and train.idx")
    with open(rec, "rb") as file:
        if file.read(4) != MAGIC:
            raise UserError(f"{rec} is not a RecordIO file: it does not start with the magic number of one")
    about = {"recordio": str(rec.resolve()), "bytes": rec.stat().st_size, "index bytes": idx.stat().st_size}
    about |= {"identities": _count_identities(rec.parent / "property"), "images of a file": shard_images}
    jobs = [partial(read_records, rec, lines, about["identities"]) for lines in divide_lines(idx, shard_images)]
    if not jobs:
        raise UserError(f"{idx} is empty: make it again (im2rec or rec2idx of MXNet do), or get it again")
    return Plan(about, jobs)


def read_records(rec: Path, lines: Lines, identities: int | None) -> Iterator[Record | Broken]:
    """The images that these lines of the index point at; labels count to `identities`."""
    # Larger than most images, so that neighbours come from the disk in one go.
    with open(rec, "rb", buffering=1 << 20) as file:
        for line in lines.read():
            key = line.partition(b"\t")[0].decode(errors="replace")
            try:
                labels, image = unpack(read_record(file, _offset(line)))
                if not _describes_the_set(labels, image):
                    label = _label(labels, identities)
                    yield Record(key, image, label, str(label))
            except ValueError as error:
                yield Broken(key, str(error))


def read_record(file: BinaryIO, offset: int) -> bytes:
    """The data of the record that starts at `offset`, parts joined. Raises ValueError if it is damaged."""
    file.seek(offset)
    parts, part_kind = [], FIRST
    while part_kind not in (WHOLE, LAST):
        head = file.read(8)
        if head[:4] != MAGIC[: len(head)]:
            raise ValueError(f"no magic number at byte {file.tell() - len(head)}")
        if len(head) < 8:
            raise ValueError("truncated: the file ends in it")
        word = struct.unpack("<4xI", head)[0]
        part_kind, length = word >> 29, word & (1 << 29) - 1
        if (part_kind in (WHOLE, FIRST)) == bool(parts):
            raise ValueError("its parts are out of order")
        parts.append(file.read(length))
        if len(parts[-1]) < length:
            raise ValueError("truncated: the file ends in it")
        file.seek(-length % 4, 1)
    return MAGIC.join(parts)


def unpack(data: bytes) -> tuple[np.ndarray, bytes]:
    """Labels (float32 [n]) and encoded image of a record. Raises ValueError if it is too short."""
    if len(data) < HEADER.size or len(data) < HEADER.size + 4 * HEADER.unpack_from(data)[0]:
        raise ValueError(f"too short for its header: {len(data)} bytes")
    count, label, _, _ = HEADER.unpack_from(data)
    labels = np.frombuffer(data, "<f4", count, HEADER.size) if count else np.array([label], dtype=np.float32)
    return labels, data[HEADER.size + 4 * count :]


def _describes_the_set(labels: np.ndarray, image: bytes) -> bool:
    """Whether this is no image but the header (record 0) or an identity: a range of keys, which start at 1.

    The header says from which key on the identities stand, but as a float32, so wrongly beyond 2^24 images.
    """
    return not image and len(labels) == 2 and 1 <= labels[0] <= labels[1]


def _offset(line: bytes) -> int:
    offset = line.partition(b"\t")[2]
    if not offset.strip().isdigit() or int(offset) >= 2**63:
        raise ValueError(f"its line in the index is {line[:80]!r}, not a key and an offset")
    return int(offset)


def _label(labels: np.ndarray, identities: int | None) -> int:
    label = float(labels[0])
    if not (label.is_integer() and 0 <= label <= LARGEST_LABEL):
        raise ValueError(f"its label is {label:g}, not an integer from 0 to {LARGEST_LABEL}")
    if identities is not None and label >= identities:
        raise ValueError(f"its label is {label:g}, but property says that there are {identities} identities")
    return int(label)


def _count_identities(path: Path) -> int | None:
    if not path.is_file():
        return None
    try:
        return int(path.read_bytes().split(b",")[0])
    except ValueError:
        raise UserError(f"{path} does not start with a number of identities: correct or remove it") from None
