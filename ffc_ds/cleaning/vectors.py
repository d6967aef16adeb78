"""The embeddings of a folder of `embed.py`, in one memory-mapped file that all ranks make and read."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.data.file_parts import lacking
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.distributed import rank, together, world_size
from ffc_ds.embedding_set.parts import ABOUT
from ffc_ds.errors import UserError

COLUMNS = ("row", "path", "name", "embedding")
READ = 16384  # rows


def shared_array(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new array in a file that every rank maps; all ranks call it. Raises UserError where there is no room."""
    length = math.prod(shape)

    def make() -> None:
        try:
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, length * dtype.itemsize)  # a full disk would kill who writes later
        except OSError as error:
            size = f"{length * dtype.itemsize / 2**30:.1f} GiB"
            raise UserError(f"{path} cannot be made ({error.strerror}): it takes {size}") from None

    together(lambda: make() if rank() == 0 else None)
    return torch.from_file(str(path), shared=True, size=length, dtype=dtype).view(shape)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises UserError, naming the file, where it is damaged or gone."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split()):.200})") from None


class _File(NamedTuple):
    path: Path
    start: int
    """Its first image."""
    rows: int

    def batches(self, column: str, rows: int) -> Iterator[pa.RecordBatch]:
        with _reading(self.path):
            yield from pq.ParquetFile(self.path).iter_batches(rows, columns=[column])


class Embeddings:
    """A set's embeddings; an image is called by its number, in the order of the files. All ranks make it together.

    Attributes:
        index: the images of each identity.
        about: what the embeddings were made of, or None if the files do not say it.

    Raises UserError for a folder that is not one of `embed.py`, or not finished, and for what is not finite.
    """

    def __init__(self, folder: str, scratch: Path):
        self.folder = Path(folder)
        self._files, self.dim, dtype, self.about = together(lambda: _looked_at(self.folder))
        self.index = together(lambda: IdentityIndex.build(self._names))
        self._all = shared_array(scratch, (len(self), self.dim), dtype)
        together(lambda: [self._copy(file) for file in self._files[rank() :: world_size()]])

    def __len__(self) -> int:
        return self._files[-1].start + self._files[-1].rows

    def unit(self, images: np.ndarray) -> Tensor:
        """Of these images (int64 [k]): float32 [k, D], of length 1."""
        return F.normalize(self._all[torch.from_numpy(images)].float(), dim=1)

    def identities(self) -> np.ndarray:
        """The identity of each image, int64 [n]."""
        found = np.empty(len(self), np.int64)
        found[self.index.images] = np.repeat(np.arange(self.index.identities), self.index.counts)
        return found

    def rows_and_paths(self, images: np.ndarray) -> tuple[pa.Array, pa.Array]:
        """Row in the set that was embedded (int64) and path (text) of these images (int64 [k]), null for -1."""
        kept = [pa.table({name: pa.array([], kind) for name, kind in (("row", pa.int64()), ("path", pa.string()))})]
        wanted = np.unique(images[images >= 0])
        for file in self._files:
            own = wanted[(wanted >= file.start) & (wanted < file.start + file.rows)] - file.start
            if len(own):
                with _reading(file.path):
                    kept.append(pq.read_table(file.path, columns=["row", "path"]).take(own).cast(kept[0].schema))
        found = pa.concat_tables(kept)
        places = pa.array(np.searchsorted(wanted, images), mask=images < 0)
        return tuple(found[name].combine_chunks().take(places) for name in ("row", "path"))

    def _names(self) -> Iterator[pa.Array]:
        for file in self._files:
            for batch in file.batches("name", 1 << 20):
                names = batch.column(0)
                if names.null_count:
                    raise UserError(f"{file.path} has images without a name: give a folder that embed.py wrote")
                yield names.cast(pa.int64() if pa.types.is_integer(names.type) else pa.large_string())

    def _copy(self, file: _File) -> None:
        place = file.start
        for batch in file.batches("embedding", READ):
            values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            if len(values) != len(batch) * self.dim or not np.isfinite(values).all():
                raise UserError(f"{file.path} has embeddings that are missing or not finite: make it anew")
            self._all.numpy()[place : place + len(batch)] = values.reshape(-1, self.dim)
            place += len(batch)


def _looked_at(folder: Path) -> tuple[list[_File], int, torch.dtype, dict[str, Any] | None]:
    """The files of a folder, the length and type of embeddings, and what they were made of."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one that embed.py wrote")
    paths = sorted(folder.glob("*.parquet"))
    there = lacking(paths) if paths else "no parquet files"
    if there:
        raise UserError(f"{folder} holds {there}: the same embed.py command as before goes on and finishes it")
    files, kinds, start = [], {}, 0
    for path in paths:
        with _reading(path), pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        dim, dtype = _kind(path, schema)
        kinds.setdefault((dim, dtype, (schema.metadata or {}).get(ABOUT)), path)
        files.append(_File(path, start, rows))
        start += rows
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise UserError(f"{first} and {second} are not of one set: give each set a folder of its own")
    if start == 0:
        raise UserError(f"{folder} holds no embeddings: there is nothing to clean")
    ((dim, dtype, about),) = kinds
    return files, dim, dtype, json.loads(about) if about else None


def _kind(path: Path, schema: pa.Schema) -> tuple[int, torch.dtype]:
    for name in COLUMNS:
        if name not in schema.names:
            raise UserError(f"{path} has no column {name}, only {', '.join(schema.names)}: embed.py writes such files")
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise UserError(f"column embedding of {path} holds {kind}, not lists of one length of floats, as of embed.py")
    return kind.list_size, torch.from_numpy(np.empty(0, kind.value_type.to_pandas_dtype())).dtype
