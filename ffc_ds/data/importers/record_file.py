"""MXNet's RecordIO: records that are found by an index, or without one.

A record is a magic number, a word with 3 bits that say which part of a record this is and 29 bits of length, the data,
and padding to 4 bytes. Data that contain the magic number at a multiple of 4 are cut there, and the number is left out.
So wherever it stands at a multiple of 4, a record or its next part starts: records are found without an index, and
found again behind damaged bytes.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path

from ffc_ds.errors import UserError

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, LAST = 0, 1, 3


@contextmanager
def opened(path: Path) -> Iterator[mmap]:
    """The file as bytes that are read when they are looked at. Raises UserError if it has none."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty: get it again")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            yield data


def records(data: mmap, starts: list[int]) -> Iterator[tuple[int, int, bytes | ValueError]]:
    """Start, end and content of the records that start there, or what is wrong with them."""
    for start in starts:
        try:
            content, end = _record(data, start)
            yield start, end, content
        except ValueError as error:
            yield start, start + 1, error


def scan(
    data: mmap, start: int, stop: int, is_whole: Callable[[bytes], bool]
) -> Iterator[tuple[int, int, bytes | ValueError]]:
    """As `records`, for all that lies between `start` and `stop`; damaged bytes may have been several records.

    `is_whole` tells whether a record's content is all there, if damaged bytes follow on it: if not, its length is what
    is damaged.
    """
    position = next_start(data, start)
    if position > start:
        yield start, position, _no_record(start, position)
    while position < stop:
        try:
            content, end = _record(data, position)
        except ValueError as error:
            following = next_start(data, position + len(MAGIC))
            yield position, following, error
        else:
            following = next_start(data, end)
            if following == end:
                yield position, end, content
            elif is_whole(content):
                yield position, end, content
                yield end, following, _no_record(end, following)
            else:
                yield position, following, ValueError(f"its length is wrong: no record follows at byte {end}")
        position = following


def next_start(data: mmap, position: int, stop: int | None = None) -> int:
    """Where a record starts, from `position` on and before `stop`; the file's end if none does."""
    position = _find_magic(data, position, stop)
    while position < len(data) and not is_start(data, position):
        position = _find_magic(data, position + len(MAGIC), stop)
    return position


def is_start(data: mmap, position: int) -> bool:
    """Whether a record starts there."""
    head = data[position : position + 8]
    return position % 4 == 0 and len(head) == 8 and head[:4] == MAGIC and head[7] >> 5 in (WHOLE, FIRST)


def _record(data: mmap, start: int) -> tuple[bytes, int]:
    """Data of a record, parts joined, and where it ends. Raises ValueError if it is damaged."""
    parts, kind, position = [], FIRST, start
    while kind not in (WHOLE, LAST):
        head = data[position : position + 8]
        if head[:4] != MAGIC[: len(head)]:
            raise ValueError(f"no magic number at byte {position}")
        if len(head) < 8:
            raise ValueError("truncated: the file ends in it")
        word = struct.unpack("<4xI", head)[0]
        kind, length = word >> 29, word & (1 << 29) - 1
        if (kind in (WHOLE, FIRST)) == bool(parts):
            raise ValueError("its parts are out of order")
        position += len(head)
        if _find_magic(data, position, position + length) < len(data):
            raise ValueError(f"its length is wrong: another one starts within its {length} bytes")
        parts.append(data[position : position + length])
        if len(parts[-1]) < length:
            raise ValueError("truncated: the file ends in it")
        position += length + -length % 4
    return MAGIC.join(parts), min(position, len(data))


def _find_magic(data: mmap, position: int, stop: int | None) -> int:
    stop = len(data) if stop is None else stop
    found = data.find(MAGIC, position, stop)
    while found >= 0 and found % 4:
        found = data.find(MAGIC, found + 1, stop)
    return found if found >= 0 else len(data)


def _no_record(start: int, end: int) -> ValueError:
    return ValueError(f"no magic number at byte {start}, where a record should start: {end - start} bytes are skipped")
