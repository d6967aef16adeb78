"""InsightFace's sets: `train.rec`, `train.idx`, `property`, in MXNet's RecordIO, read without MXNet.

The data of an image are a header (flag, float label, two ids), `flag` further float labels if flag is not 0, and the
encoded image.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from mmap import mmap
from pathlib import Path

import numpy as np

from ffc_ds.data.file_kind import file_kind
from ffc_ds.data.importers.image_check import damage
from ffc_ds.data.importers.plan import BOM, Broken, Lines, Plan, Record, check_count, content_of, divide_lines
from ffc_ds.data.importers.record_file import MAGIC, is_start, next_start, opened, records, scan
from ffc_ds.errors import UserError

HEADER = struct.Struct("<IfQQ")
LARGEST_LABEL = 2**24  # beyond it a float32 skips integers, and two identities would be one
START = 1 << 20  # bytes; a file in which no record starts there is of another kind
SAMPLE = 100  # records that tell how large they are


def plan_recordio(source: str, shard_images: int = 20_000) -> Plan:
    """Plan the import of an InsightFace set, with or without the header record that lists its identities.

    Args:
        source: folder with train.rec and perhaps train.idx and property, or a .rec file, perhaps with its .idx beside
            it. Without an index that fits, the records are found by scanning.
        shard_images: images of one parquet file; without an index, about so many.
    """
    check_count(shard_images)
    rec = Path(source) / "train.rec" if Path(source).is_dir() else Path(source)
    idx, described = rec.with_suffix(".idx"), rec.parent / "property"
    if not rec.is_file():
        raise UserError(f"there is no {rec} (images and labels): give the folder with train.rec, or a .rec file")
    identities = _count_identities(described)
    with opened(rec) as data:
        if next_start(data, 0, START) == len(data):
            raise UserError(f"{rec} is not a RecordIO file: it is {file_kind(rec) or 'of an unknown kind'}")
        try:
            starts, parts = _divide_index(idx, data, shard_images)
        except ValueError as reason:
            print(f"{reason}, so the records of {rec.name} are found by scanning")
            places = range(0, len(data), _bytes_of(data, shard_images))
            starts, parts = [next_start(data, place) for place in places], [None] * len(places)
        borders = pairwise([0, *starts[1:], len(data)])
    about = {"recordio": str(rec.resolve()), "identities": identities, "images of a file": shard_images}
    about["content"] = content_of(file for file in (rec, idx, described) if file.is_file())
    ranges = zip(borders, parts, strict=True)
    return Plan(about, [partial(read_records, rec, *border, lines, identities) for border, lines in ranges])


def read_records(
    rec: Path, start: int, stop: int, lines: Lines | None, identities: int | None
) -> Iterator[Record | Broken]:
    """The images from byte `start` to `stop`, where records start or the file ends; labels count to `identities`.

    They are those that these lines of the index point at or, if one of them does not point at a record, all there are.
    """
    with opened(rec) as data:
        keys = dict(_entries(lines)) if lines else {}
        starts = list(keys)  # ascending, as the plan has seen to
        inside, beyond = ([at for at in keys if (at < len(data)) == side] for side in (True, False))
        trusted = keys and all(is_start(data, at) for at in inside)
        for position, end, content in records(data, inside) if trusted else scan(data, start, stop, _is_whole):
            try:
                if isinstance(content, ValueError):
                    raise content
                labels, image = unpack(content)
                if not _describes_the_set(labels, image):
                    label = _label(labels, identities)
                    yield Record(keys.get(position, f"byte {position}"), image, label, str(label))
            except ValueError as error:
                here = starts[bisect_left(starts, position) : bisect_left(starts, end)]
                for key in [keys[at] for at in here] or [f"byte {position}"]:
                    yield Broken(key, str(error))
        for at in beyond:
            yield Broken(keys[at], f"truncated: the file ends before byte {at}, where it should start")


def unpack(data: bytes) -> tuple[np.ndarray, bytes]:
    """Labels (float32 [n]) and encoded image of a record. Raises ValueError if it is too short."""
    if len(data) < HEADER.size or len(data) < HEADER.size + 4 * HEADER.unpack_from(data)[0]:
        raise ValueError(f"too short for its header: {len(data)} bytes")
    count, label, _, _ = HEADER.unpack_from(data)
    labels = np.frombuffer(data, "<f4", count, HEADER.size) if count else np.array([label], dtype=np.float32)
    return labels, data[HEADER.size + 4 * count :]


def _is_whole(content: bytes) -> bool:
    """Whether a record ends where its length says, which is damaged otherwise."""
    try:
        labels, image = unpack(content)
    except ValueError:
        return False
    return _describes_the_set(labels, image) or damage(image, "header") is None


def _bytes_of(data: mmap, count: int) -> int:
    """About how many bytes so many records have."""
    starts = [start for start, *_ in islice(scan(data, 0, len(data), _is_whole), SAMPLE)]
    return max(next_start(data, starts[-1] + len(MAGIC)) * count // len(starts), 1)


def _divide_index(idx: Path, data: mmap, count: int) -> tuple[list[int], list[Lines]]:
    """The lines of the index, `count` at a time, and where the first record of each part starts.

    Raises ValueError, which says so, if there is no index or it cannot be that of these records.
    """
    if not idx.is_file():
        raise ValueError(f"there is no {idx}")
    starts, parts, last, astray = [], [], -1, 0
    for part in divide_lines(idx, count):
        offsets = [offset for offset, _ in _entries(part)]
        if any(before >= after for before, after in pairwise([last, *offsets])):
            raise ValueError(f"the offsets in {idx} are not in the order of records")
        if offsets:
            last = offsets[-1]
            if not parts or offsets[0] >= len(data) or is_start(data, offsets[0]):
                starts.append(min(offsets[0], len(data)))
                parts.append(part)
            else:  # this record is damaged, or this entry: the job before it finds out
                parts[-1] = parts[-1]._replace(length=part.start + part.length - parts[-1].start)
                astray += 1
    if not parts or next_start(data, last + len(MAGIC)) < len(data):
        raise ValueError(f"{idx} ends before the records do")
    if astray > len(parts):
        raise ValueError(f"{idx} does not point at records")
    return starts, parts


def _entries(lines: Lines) -> Iterator[tuple[int, str]]:
    """Offset and key of each line of an index. Raises ValueError for a line that is no such thing."""
    for line in filter(bytes.strip, lines.read()):
        key, _, offset = line.strip().partition(b"\t")
        if not offset.isdigit() or int(offset) >= 2**63:
            raise ValueError(f"{lines.path} has the line {line[:80]!r}, which is not a key and an offset")
        yield int(offset), key.decode(errors="replace")


def _describes_the_set(labels: np.ndarray, image: bytes) -> bool:
    """Whether this is no image but the header (record 0) or an identity: a range of keys, which start at 1.

    The header says from which key on the identities stand, but as a float32, so wrongly beyond 2^24 images.
    """
    return not image and len(labels) == 2 and 1 <= labels[0] <= labels[1]


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
        return int(path.read_bytes().removeprefix(BOM).split(b",")[0])
    except ValueError:
        raise UserError(f"{path} does not start with a number of identities: correct or remove it") from None
