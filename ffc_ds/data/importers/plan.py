"""What every source of images hands over: a plan of jobs, each of which reads the images of one parquet file."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ffc_ds.data.bounds import MAX_BYTES as LARGEST
from ffc_ds.data.content import content_fingerprint
from ffc_ds.errors import UserError

BOM = codecs.BOM_UTF8  # what Windows puts in front of a text
WHOLE = re.compile(rb"\s*[+-]?[0-9]+\s*")  # int() would take 12_3 as well


class Record(NamedTuple):
    """One image as the source has it."""

    key: str
    """Where in the source it lies."""
    image: bytes
    """Encoded."""
    label: int
    """Number of the identity."""
    identity: str
    """Name of the identity."""


class Broken(NamedTuple):
    """A record that cannot be used."""

    key: str
    """Where in the source it lies."""
    reason: str
    """What is wrong with it."""


Job = Callable[[], Iterator[Record | Broken]]


class Plan(NamedTuple):
    """How to read a source. Its memory grows with the number of jobs, of identities, or of files, not of records."""

    about: dict[str, Any]
    """What tells this source and its division into jobs from another, as JSON holds it."""
    jobs: list[Job]
    """Readers that can be sent to another process; their order is that of the parquet files."""


class Lines(NamedTuple):
    """Consecutive lines of a text file."""

    path: Path
    start: int
    """Offset in bytes."""
    length: int
    """In bytes."""

    def read(self) -> list[bytes]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            text = file.read(self.length)
        return (text if self.start else text.removeprefix(BOM)).splitlines()


def divide_lines(path: Path, count: int) -> list[Lines]:
    """All lines of a file, `count` at a time. Raises UserError for UTF-16."""
    parts, start = [], 0
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{path} is a text in UTF-16: save it as UTF-8")
        file.seek(0)
        while length := sum(map(len, islice(file, count))):
            parts.append(Lines(path, start, length))
            start += length
    return parts


def check_count(shard_images: int) -> None:
    """Raise UserError unless a parquet file is to hold something."""
    if shard_images < 1:
        raise UserError(f"--shard_images is {shard_images}: a parquet file holds at least one image")


def content_of(files: Iterable[Path]) -> str:
    """What `Plan.about` says of the files that a source is read from, under "content"."""
    return content_fingerprint((str(file.resolve()), file) for file in files)


def check_size(size: int) -> None:
    """Raises ValueError, which says so, if a file or value of `size` bytes is too large for an image."""
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, and images are read up to {LARGEST:,}")


def printable(name: str) -> str:
    """A file's name as it can be stored; bytes that are no UTF-8 become \\xNN, and different names stay different,
    because a backslash becomes two."""
    return name.replace("\\", "\\\\").encode(errors="surrogateescape").decode(errors="backslashreplace")


def parse_label(text: bytes | str) -> int:
    """Raises ValueError, which says so, for anything but a whole number from 0 that int64 holds."""
    encoded = text.encode(errors="replace") if isinstance(text, str) else text.removeprefix(BOM)
    if not WHOLE.fullmatch(encoded):
        raise ValueError(f"its label is {text!r}, not an integer")
    label = int(encoded)
    if not 0 <= label < 2**63:
        raise ValueError(f"its label is {label}, and labels count from 0")
    return label
