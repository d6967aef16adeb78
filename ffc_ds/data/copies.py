"""The Arrow files in the cache, which are copies of the user's data: what to say when one is cut off or overwritten.

Opened so, an Arrow file says nothing of the data that it was made of, and one that loses its end while it is mapped
kills whoever reads on, which the DataLoader takes for a lack of shared memory.
"""

from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa

from ffc_ds.config.documents import read_json
from ffc_ds.errors import UserError


def open_copy(copy: Path, original: str, rows: int, split: str | None = None) -> datasets.Dataset:
    """A copy of `original`, which has that many rows, memory-mapped. Raises UserError, see `check_copies`."""
    try:
        dataset = datasets.Dataset.from_file(str(copy), split=split and datasets.NamedSplit(split))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(copy, original, error) from error
    if len(dataset) != rows:
        raise _damaged(copy, original, f"{len(dataset):,} rows of {rows:,}")
    return dataset


def check_copies(copies: Iterable[Path], original: str) -> None:
    """Raise UserError, naming the file to delete, unless these Arrow files, copies of `original`, are whole."""
    for copy in copies:
        try:
            with pa.memory_map(str(copy)) as file:
                pa.ipc.open_stream(file).read_all()
        except (OSError, pa.ArrowException) as error:
            raise _damaged(copy, original, error) from error


def check_cache(folder: Path, original: str) -> None:
    """`check_copies` of all that `datasets` left in a folder of its cache, with what it noted about them."""
    for about in sorted(folder.rglob("dataset_info.json")):
        try:
            readable = isinstance(read_json(about), dict)
        except UserError:
            readable = False
        if not readable:
            raise _damaged(about.parent, original, "dataset_info.json")
    check_copies(sorted(folder.rglob("*.arrow")), original)


def _damaged(copy: Path, original: str, reason: object) -> UserError:
    return UserError(
        f"the copy of {original} in the cache is cut off or damaged ({' '.join(str(reason).split())}): delete {copy}, "
        "and it is made anew; the data itself need not be touched"
    )
