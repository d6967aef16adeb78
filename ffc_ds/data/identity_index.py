"""Which images belong to which identity: two flat arrays (compressed sparse rows), memory-mapped from a cache."""

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffc_ds.data.randomness import mix, permute
from ffc_ds.errors import UserError

SPLIT_STREAM = 100


@dataclass(frozen=True)
class IdentityIndex:
    """Images grouped by identity; identities are dense numbers 0..I-1 in the order of their labels.

    Attributes:
        offsets: int64 [I + 1]; the images of identity i are `images[offsets[i]:offsets[i + 1]]`.
        images: int64 [offsets[-1]], dataset rows, ascending within each identity.
        names: int64 [I], the dataset's own label of each identity, ascending.
    """

    offsets: np.ndarray
    images: np.ndarray
    names: np.ndarray

    @classmethod
    def build(cls, labels: np.ndarray) -> "IdentityIndex":
        """Group the rows of `labels` (integers [n], any values, gaps allowed). Raises UserError when there are none."""
        labels = np.asarray(labels, dtype=np.int64)
        if labels.size == 0:
            raise UserError("no images to index: the dataset or its selected part is empty")
        images = np.argsort(labels, kind="stable")
        grouped = labels[images]
        starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
        return cls(np.append(starts, labels.size), images, grouped[starts])

    @property
    def identities(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> np.ndarray:
        """Images of each identity, int64 [I]."""
        return np.diff(self.offsets)

    def image_identity(self, positions: np.ndarray) -> np.ndarray:
        """The identity of the p-th entry of `images`, int64, for each p of `positions` (integers of any shape)."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def at_least(self, images: int) -> "IdentityIndex":
        """The identities that have that many images, dense again. Raises UserError when there are none."""
        counts = self.counts
        if counts.max() < images:
            raise UserError(
                f"no identity has {images} images, the largest number is {counts.max()}: choose a smaller minimum"
            )
        return self._where(counts >= images)

    def split(self, share: float, seed: int) -> tuple["IdentityIndex", "IdentityIndex"]:
        """Hold out a random `share` of the identities: (train, held out), each dense again.

        A function of `seed` and the number of identities only. Raises UserError when either part would be empty.
        """
        number = round(self.identities * share)
        if not 0 < number < self.identities:
            raise UserError(
                f"holding out a share of {share} of {self.identities} identities leaves {self.identities - number} for "
                f"training and {number} held out: choose a share that leaves at least one on each side"
            )
        held_out = np.zeros(self.identities, dtype=bool)
        held_out[permute(np.arange(number), self.identities, mix(seed, SPLIT_STREAM))] = True
        return self._where(~held_out), self._where(held_out)

    def _where(self, kept: np.ndarray) -> "IdentityIndex":
        counts = self.counts
        offsets = np.r_[0, np.cumsum(counts[kept])]
        return IdentityIndex(offsets, self.images[np.repeat(kept, counts)], self.names[kept])

    def save(self, folder: Path) -> None:
        """Write the arrays aside and rename: a folder of that name is always complete, whoever wins the race."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        aside.mkdir()
        try:
            for field in ("offsets", "images", "names"):
                np.save(aside / f"{field}.npy", getattr(self, field))
            os.rename(aside, folder)
        except OSError:
            # A full folder cannot be renamed over: another process was first, with the same content.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> "IdentityIndex":
        """Memory-map what `save` wrote: processes share the pages, and only those that are touched are read."""
        return cls(*(np.load(folder / f"{field}.npy", mmap_mode="r") for field in ("offsets", "images", "names")))


def cached(folder: Path, build: Callable[[], IdentityIndex]) -> IdentityIndex:
    """What `build` makes, made once and memory-mapped from `folder`. Raises UserError when the files are damaged."""
    if not folder.is_dir():
        build().save(folder)
    try:
        return IdentityIndex.load(folder)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the identity index in {folder} cannot be read ({error}): delete that folder") from error


def load_or_build(labels: np.ndarray, fingerprint: str, cache_dir: str | os.PathLike) -> IdentityIndex:
    """The index of `labels`, built once per dataset fingerprint and memory-mapped from `cache_dir`.

    Raises UserError when the cached files are damaged or belong to another number of images.
    """
    folder = Path(cache_dir) / f"identity-index-{fingerprint}"
    index = cached(folder, lambda: IdentityIndex.build(labels))
    if len(index.images) != len(labels) or index.offsets[-1] != len(labels):
        raise UserError(
            f"the identity index in {folder} covers {len(index.images)} images, the dataset has {len(labels)}: "
            "delete that folder"
        )
    return index
