"""A folder of images for each identity."""

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from ffc_ds.data.importers.plan import Broken, Plan, Record, check_count, printable
from ffc_ds.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def plan_imagefolder(source: str, shard_images: int = 20_000) -> Plan:
    """Plan the import of images SOURCE/IDENTITY/IMAGE; identities are numbered by their names in sorted order.

    Args:
        source: folder with a folder for each identity.
        shard_images: images of one parquet file.
    """
    check_count(shard_images)
    root = Path(source)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: check the path")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    counts = np.array([len(_files(root / name)) for name in names], dtype=np.int64)
    names = [name for name, count in zip(names, counts, strict=True) if count]
    if not names:
        raise UserError(f"{root} has no folder with images ({', '.join(ENDINGS)}): expected are {root}/IDENTITY/IMAGE")
    counts = counts[counts > 0]
    ends = counts.cumsum()
    jobs = []
    for start in range(0, ends[-1], shard_images):
        first, last = np.searchsorted(ends, (start, min(start + shard_images, ends[-1]) - 1), side="right")
        before = start - (ends[first] - counts[first])
        jobs.append(partial(read_folders, root, int(first), names[first : last + 1], int(before), shard_images))
    about = {"imagefolder": str(root.resolve()), "identities": len(names), "images": int(ends[-1])}
    return Plan(about | {"images of a file": shard_images}, jobs)


def read_folders(root: Path, first: int, names: list[str], skip: int, count: int) -> Iterator[Record | Broken]:
    """The `count` images after the first `skip` ones of these identities, which are numbered from `first`."""
    files = ((label, name, file) for label, name in enumerate(names, first) for file in _files(root / name))
    for label, name, file in islice(files, skip, skip + count):
        key = printable(f"{name}/{file}")
        try:
            yield Record(key, (root / name / file).read_bytes(), label, printable(name))
        except OSError as error:
            yield Broken(key, f"it cannot be read ({error.strerror})")


def _files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(ENDINGS))
