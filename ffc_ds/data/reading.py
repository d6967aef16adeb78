"""From rows of a dataset to pixels: one that cannot be read or decoded is refused, or another takes its place."""

import numpy as np
import torch

from ffc_ds.data.ahead import Ahead
from ffc_ds.data.bounds import MAX_MEGAPIXELS, CorruptImage
from ffc_ds.data.decoding import decode, decode_many
from ffc_ds.errors import UserError


def read_images(faces, rows: np.ndarray, image_size: int, max_megapixels: float = MAX_MEGAPIXELS) -> torch.Tensor:
    """Read and decode rows (int64, any shape) of `Faces`, or what reads like it, into uint8 [*rows.shape, S, S, 3].

    Raises CorruptImage, naming the row, for an image that cannot be read or decoded, or that announces more than
    `max_megapixels`, unless `faces` has substitutes.
    """
    images = np.empty((*rows.shape, image_size, image_size, 3), dtype=np.uint8)
    read_into(images, faces, rows, max_megapixels)
    return torch.from_numpy(images)


def image_batches(
    faces, rows: np.ndarray, image_size: int, batch_size: int, threads: int, max_megapixels: float = MAX_MEGAPIXELS
) -> Ahead[np.ndarray, torch.Tensor]:
    """`read_images` of rows (int64 [n]) in their order, `batch_size` at a time, by threads ahead of their use."""
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return Ahead(lambda part: read_images(faces, part, image_size, max_megapixels), parts, threads)


def read_into(images: np.ndarray, faces, rows: np.ndarray, max_megapixels: float = MAX_MEGAPIXELS) -> list[str]:
    """`read_images` into a contiguous array. Returns what to say about each place that shows a substitute."""
    images = images.reshape(-1, *images.shape[-3:])
    # An image that stands in several places is decoded once, and ascending rows are the disk's favourite order.
    distinct, first, which = np.unique(rows.ravel(), return_index=True, return_inverse=True)
    said = {}

    def substitute(position: int, error: CorruptImage) -> None:
        said[position] = _substitute(images[first[position]], faces, distinct[position], error, max_megapixels)

    places = [images[place] for place in first]
    decode_many(faces.encoded(distinct), images.shape[1], places, substitute, max_megapixels)
    sources = first[which]
    again = np.flatnonzero(sources != np.arange(rows.size))
    images[again] = images[sources[again]]
    return [said[position] for position in which if position in said] if said else []


def _substitute(pixels: np.ndarray, faces, row: int, error: CorruptImage, max_megapixels: float) -> str:
    where = faces.where(row) if hasattr(faces, "where") else f"row {row} of {faces.name}"
    if not hasattr(faces, "substitutes"):
        raise CorruptImage(f"{where}: {error}") from None
    for other in faces.substitutes(row):
        try:
            decode(faces.encoded(np.array([other]))[0], len(pixels), pixels, max_megapixels)
        except CorruptImage:
            continue
        return f"{where}: {error}; {faces.where(other)} takes its place"
    raise UserError(
        f"{where}: {error}; no other image of that identity can be used either: mend one, or remove the identity"
    ) from None
