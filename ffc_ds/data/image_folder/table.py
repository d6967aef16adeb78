"""A folder of images as a dataset: a memory-mapped table of their paths and people, kept under what is in the files."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import datasets
import pyarrow as pa

from ffc_ds.data.content import content_fingerprint
from ffc_ds.data.copies import open_copy
from ffc_ds.data.image_folder.people import People, count_images, read_image_folder
from ffc_ds.data.importers.plan import printable
from ffc_ds.errors import UserError
from ffc_ds.files import replaced
from ffc_ds.progress import say_once

FEATURES = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
PART = 1 << 16  # files whose fingerprint is taken at once
ROWS, BYTES = 1 << 16, 32 * 1024**2  # of a batch; each costs 3 KB of every process that opens the table


def open_image_folder(root: str | os.PathLike) -> dict[str, datasets.Dataset]:
    """Every split of a folder of images; on rank 0 it is said what was left out, if anything was.

    Columns: image, an undecoded {"bytes": null, "path": absolute path}, and label, the person's name as the folder has
    it (string; bytes that are no UTF-8 as \\xNN, and an image with such bytes in its path is in the table itself).
    The table lies in the datasets cache and is found by what is in the images; the dataset has their fingerprint.
    Raises UserError as `read_image_folder` does, and if the cache cannot be written or the table in it is damaged.
    """
    folder = read_image_folder(root)
    if folder.left_out or folder.doubts:
        say_once(str(folder))
    opened = {}
    for split, people in folder.splits.items():
        content = content_of(folder.root, people)
        path = Path(datasets.config.HF_DATASETS_CACHE, "ffc_ds", f"images-{_digest(content, folder.root)}.arrow")
        try:
            if not path.is_file():
                _write(path, folder.root, people)
        except OSError as error:
            raise UserError(
                f"the table of {printable(folder.root)} cannot be made in {path.parent} ({error}): mend that, or set "
                "HF_DATASETS_CACHE to another folder"
            ) from error
        opened[split] = open_copy(path, printable(folder.root), count_images(people), split)
        opened[split]._fingerprint = content
    return opened


def content_of(root: str, people: People) -> str:
    """Hexadecimal, another one when names, sizes or contents change, or when an image can no longer be read."""
    paths = list(chain.from_iterable(people.values()))
    parts = ([(path, Path(root, path)) for path in paths[start : start + PART]] for start in range(0, len(paths), PART))
    return _digest(*(content_fingerprint(part, all_readable=False) for part in parts))


def _write(path: Path, root: str, people: People) -> None:
    schema = FEATURES.arrow_schema
    with (
        replaced(path) as aside,
        pa.OSFile(str(aside), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        for images, labels in _batches(root, people):
            image = pa.array(images, schema.field("image").type)
            writer.write_batch(pa.record_batch([image, pa.array(labels)], schema=schema))


def _batches(root: str, people: People) -> Iterator[tuple[list[dict], list[str]]]:
    images, labels, size = [], [], 0
    for label, paths in people.items():
        for path in paths:
            image = _image(os.path.join(root, path))
            images.append(image)
            labels.append(printable(label))
            size += len(image["bytes"] or b"")
            if len(images) == ROWS or size >= BYTES:
                yield images, labels
                images, labels, size = [], [], 0
    if images:
        yield images, labels


def _image(path: str) -> dict:
    try:
        path.encode()
    except UnicodeEncodeError:  # Arrow cannot hold this name, by which alone the file can be opened
        with suppress(OSError):
            return {"bytes": Path(path).read_bytes(), "path": printable(path)}
    return {"bytes": None, "path": printable(path)}


def _digest(*parts: str) -> str:
    return hashlib.blake2b(b"\0".join(map(os.fsencode, parts)), digest_size=16).hexdigest()
