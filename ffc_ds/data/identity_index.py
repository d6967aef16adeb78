"""Which images belong to which identity: two flat arrays (compressed sparse rows), memory-mapped from a cache.

Building takes memory for the identities and a part of the images, not for all images.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ffc_ds.data.randomness import mix, permute
from ffc_ds.errors import UserError

SPLIT_STREAM = 100
PART = 1 << 22  # images or names at a time

Allocate = Callable[[str, int], np.ndarray]


def in_memory(name: str, length: int) -> np.ndarray:
    """Room for an int64 array of an index."""
    return np.empty(length, np.int64)


@dataclass(frozen=True)
class IdentityIndex:
    """Images grouped by identity; identities are dense numbers 0..I-1 in the order of their names.

    Attributes:
        offsets: int64 [I + 1]; the images of identity i are `images[offsets[i]:offsets[i + 1]]`.
        images: int64 [offsets[-1]], dataset rows, ascending within each identity.
        names: int64 or large_string [I], the dataset's own label of each identity, ascending.
    """

    offsets: np.ndarray
    images: np.ndarray
    names: pa.Array

    @classmethod
    def build(cls, labels: Callable[[], Iterator[pa.Array]], allocate: Allocate = in_memory) -> "IdentityIndex":
        """Group the rows of `labels`, which gives them in parts, as `Faces.labels` does; it is called twice.

        Raises UserError when there are none.
        """
        names, counts = _tally(labels())
        offsets = allocate("offsets", len(names) + 1)
        offsets[0], offsets[1:] = 0, np.cumsum(counts)
        images, free, row = allocate("images", int(offsets[-1])), offsets[:-1].copy(), 0
        for numbers in _numbers(labels(), names):
            order = np.argsort(numbers, kind="stable")
            present, first, count = np.unique(numbers[order], return_index=True, return_counts=True)
            place = np.arange(len(order)) - np.repeat(first, count) + np.repeat(free[present], count)
            images[place] = row + order
            free[present] += count
            row += len(numbers)
        return cls(offsets, images, names)

    @property
    def identities(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> np.ndarray:
        """Images of each identity, int64 [I]."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """Hexadecimal, changes with the names of the identities and the numbers of their images."""
        digest = hashlib.blake2b(digest_size=8)
        for start in range(0, self.identities, PART):
            digest.update(repr(self.names.slice(start, PART).to_pylist()).encode())
            digest.update(np.ascontiguousarray(self.offsets[start : start + PART + 1]))
        return digest.hexdigest()

    def image_identity(self, positions: np.ndarray) -> np.ndarray:
        """The identity of the p-th entry of `images`, int64, for each p of `positions` (integers of any shape)."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def with_images(self, fewest: int) -> np.ndarray:
        """Which identities have that many images: bool [I]. Raises UserError when none has."""
        counts = self.counts
        if counts.max() < fewest:
            raise UserError(
                f"no identity has {fewest} images, the largest number is {counts.max()}: choose a smaller minimum"
            )
        return counts >= fewest

    def held_out(self, share: float, seed: int) -> np.ndarray:
        """A random `share` of the identities: bool [I], a function of `seed` and the number of identities only.

        Raises UserError when either part would be empty.
        """
        number = round(self.identities * share)
        if not 0 < number < self.identities:
            raise UserError(
                f"holding out a share of {share} of {self.identities} identities leaves {self.identities - number} for "
                f"training and {number} held out: choose a share that leaves at least one on each side"
            )
        held_out = np.zeros(self.identities, dtype=bool)
        held_out[permute(np.arange(number), self.identities, mix(seed, SPLIT_STREAM))] = True
        return held_out

    def where(self, kept: np.ndarray, allocate: Allocate = in_memory) -> "IdentityIndex":
        """The index of the identities that are `kept` (bool [I]), dense again."""
        numbers = np.flatnonzero(kept)
        offsets = allocate("offsets", len(numbers) + 1)
        offsets[0], offsets[1:] = 0, np.cumsum(self.counts[numbers])
        images = allocate("images", int(offsets[-1]))
        for start in range(0, len(images), PART):
            positions = np.arange(start, min(start + PART, len(images)))
            of_part = np.searchsorted(offsets, positions, side="right") - 1
            images[positions] = self.images[self.offsets[numbers[of_part]] + positions - offsets[of_part]]
        return IdentityIndex(offsets, images, self.names.take(pa.array(numbers)))

    @classmethod
    def load(cls, folder: Path) -> "IdentityIndex":
        """Memory-map what `cached` wrote: processes share the pages, and only those that are touched are read."""
        arrays = (np.load(folder / f"{field}.npy", mmap_mode="r") for field in ("offsets", "images"))
        names = pa.ipc.open_file(pa.memory_map(str(folder / "names.arrow"))).read_all().column(0)
        return cls(*arrays, names.combine_chunks() if names.num_chunks != 1 else names.chunk(0))


def _tally(parts: Iterator[pa.Array]) -> tuple[pa.Array, np.ndarray]:
    """Names, ascending, and how often each occurs (int64)."""
    found, pending, merged = [], 0, 0

    def merge() -> pa.Table:
        return pa.concat_tables(found).group_by("name").aggregate([("count", "sum")]).rename_columns(["name", "count"])

    for part in parts:
        counted = pc.value_counts(part)
        found.append(pa.table({"name": counted.field("values"), "count": counted.field("counts")}))
        pending += len(counted)
        if pending > merged + PART:  # merging costs as much as what was merged before
            found = [merge()]
            pending, merged = 0, len(found[0])
    if not found:
        raise UserError("no images to index: the dataset or its selected part is empty")
    table = merge().sort_by("name")
    return table["name"].combine_chunks(), table["count"].to_numpy()


def _numbers(parts: Iterator[pa.Array], names: pa.Array) -> Iterator[np.ndarray]:
    """The place of each label among the names, int64 [labels of a part], for each part."""
    if pa.types.is_integer(names.type):
        yield from (np.searchsorted(names.to_numpy(), part.to_numpy()) for part in parts)
        return
    for group in _groups(parts, len(names)):  # each look-up hashes all names, which pays for as many labels
        places = pc.index_in(pa.chunked_array(group), value_set=names).to_numpy()
        yield from (part.astype(np.int64) for part in np.split(places, np.cumsum([len(part) for part in group[:-1]])))


def _groups(parts: Iterator[pa.Array], rows: int) -> Iterator[list[pa.Array]]:
    """Consecutive parts that together have at least so many rows, but for the last ones."""
    group = []
    for part in parts:
        group.append(part)
        if sum(map(len, group)) >= rows:
            yield group
            group = []
    if group:
        yield group


def cached(folder: Path, build: Callable[[Allocate], IdentityIndex]) -> IdentityIndex:
    """What `build` makes, made once and memory-mapped from `folder`. Raises UserError when the files are damaged or
    cannot be written."""
    if not folder.is_dir():
        _write(folder, build)
    try:
        return IdentityIndex.load(folder)
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise UserError(f"the identity index in {folder} cannot be read ({error}): delete that folder") from error


def _write(folder: Path, build: Callable[[Allocate], IdentityIndex]) -> None:
    """Built in place, aside, and renamed: a folder of that name is always complete, whoever wins the race."""
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        index = build(partial(_in_file, aside))
        for array in (index.offsets, index.images):
            array.flush()
        names = pa.table({"name": index.names})
        with pa.OSFile(str(aside / "names.arrow"), "wb") as file, pa.ipc.new_file(file, names.schema) as writer:
            writer.write_table(names)
        os.rename(aside, folder)
    except OSError as error:
        # A full folder cannot be renamed over: another process was first, with the same content.
        if not folder.is_dir():
            raise UserError(
                f"the identity index cannot be written to {folder.parent} ({error.strerror}): there must be room; "
                "HF_DATASETS_CACHE names another folder"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _in_file(folder: Path, name: str, length: int) -> np.ndarray:
    path = folder / f"{name}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(length,))
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)  # a full disk would kill who writes later
    return array


def index_of(faces, cache_dir: str | os.PathLike) -> IdentityIndex:
    """The index of `Faces`, built once per fingerprint and memory-mapped from `cache_dir`.

    Raises UserError when a label cannot be used, or the cached files are damaged, of another number of images, or
    cannot be written.
    """
    folder = Path(cache_dir) / f"identities-{faces.fingerprint}"
    index = cached(folder, lambda allocate: IdentityIndex.build(faces.labels, allocate))
    if len(index.images) != len(faces) or index.offsets[-1] != len(faces):
        raise UserError(
            f"the identity index in {folder} covers {len(index.images)} images, the dataset has {len(faces)}: "
            "delete that folder"
        )
    return index
