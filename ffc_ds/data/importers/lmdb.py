"""LMDBs as the FFC code reads and writes them: a file of lines "key label", and values that are `Datum` messages.

A Datum holds the image in field 4 (Caffe's schema) or in field 1 (that of FFC's own tool). It is read by protobuf's
wire format, without the schema: a tag (number of the field and kind of value), then a varint, 8 bytes, 4 bytes, or a
length and as many bytes.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

from ffc_ds.data.importers.plan import (
    Broken,
    Lines,
    Plan,
    Record,
    check_count,
    check_size,
    content_of,
    divide_lines,
    parse_label,
)
from ffc_ds.errors import UserError

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
FIXED = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
IMAGE_FIELDS = 4, 1  # Caffe's field 1 is a number


def plan_lmdb(source: str, keys: str, shard_images: int = 20_000) -> Plan:
    """Plan the import of an LMDB.

    Args:
        source: folder of the LMDB (with data.mdb), or its file.
        keys: text file with a line "key label" for each image.
        shard_images: images of one parquet file.
    """
    check_count(shard_images)
    path, key_file = Path(source), Path(keys)
    data = path / "data.mdb" if path.is_dir() else path
    if not data.is_file():
        raise UserError(f"there is no LMDB at {path}: give the folder that holds data.mdb")
    if not key_file.is_file():
        raise UserError(f'there is no key file {key_file}: it has a line "key label" for each image')
    with _open(path) as database:
        stat, info = database.stat(), database.info()
    pages = info["last_pgno"] + 1
    if data.stat().st_size < pages * stat["psize"]:
        raise UserError(f"{data} is cut short: it has {pages * stat['psize']} bytes by its own account; copy it again")
    parts = divide_lines(key_file, shard_images)
    if not parts or len(parts[0].read()[0].split()) < 2:
        raise UserError(f'{key_file} does not start with a line "key label", as the key file of an LMDB does')
    about = {"lmdb": str(path.resolve()), "keys": str(key_file.resolve()), "images of a file": shard_images}
    # A transaction can leave most of the file as it was.
    about["content"] = f"{content_of([data, key_file])} {info['last_txnid']}"
    return Plan(about, [partial(read_values, path, lines) for lines in parts])


def read_values(path: Path, lines: Lines) -> Iterator[Record | Broken]:
    """The images that these lines of the key file name."""
    with _open(path) as database:
        for line in filter(bytes.strip, lines.read()):
            key, *label = line.strip().rsplit(None, 1)  # a key may contain blanks
            name = key.decode(errors="replace")
            try:
                label = parse_label(label[0] if label else b"")
                yield Record(name, image_of(_value(database, key)), label, str(label))
            except (ValueError, _library().Error) as error:
                yield Broken(name, str(error))


def _value(database, key: bytes) -> bytes:
    with database.begin(buffers=True) as transaction:  # one of its own, since a damaged page ends a transaction
        value = transaction.get(key)
        if value is None:
            raise ValueError("the LMDB has no such key")
        check_size(len(value))
        return bytes(value)


def image_of(value: bytes) -> bytes:
    """The image in a Datum, or the value itself if it is no Datum: some LMDBs hold the bare image."""
    try:
        fields = dict(_fields(value))
    except IndexError:
        return value
    return next((fields[number] for number in IMAGE_FIELDS if isinstance(fields.get(number), bytes)), value)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field. Raises IndexError if this is no message or a truncated one."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0 or kind not in (VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES):
            raise IndexError("no such field")
        if kind == VARINT:
            value, position = _varint(message, position)
        else:
            length, position = _varint(message, position) if kind == BYTES else (FIXED[kind], position)
            value, position = message[position : position + length], position + length
        if position > len(message):
            raise IndexError("truncated")
        yield number, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, lowest first, and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        number |= (message[position + shift // 7] & 127) << shift
        if message[position + shift // 7] < 128:
            return number, position + shift // 7 + 1
    raise IndexError("no end of a number")


def _open(path: Path):
    lmdb = _library()
    try:
        return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(f"{path} cannot be opened as an LMDB ({error}): check that the copy is complete") from error


def _library() -> ModuleType:
    try:
        import lmdb
    except ImportError as error:
        raise UserError("reading an LMDB needs the package lmdb: pip install lmdb") from error
    return lmdb
