"""Batches of the images that can be read, decoded ahead by threads; of the others it is said why."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from ffc_ds.data.ahead import Ahead
from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.decoding import decode_many
from ffc_ds.data.faces import Faces
from ffc_ds.data.failing_disk import FailingDisk


class Readable(NamedTuple):
    """What a batch of rows gives."""

    pixels: torch.Tensor
    """uint8 [k, S, S, 3], of the images that can be read."""
    rows: np.ndarray
    """int64 [k], theirs."""
    damaged: list[tuple[str, str]]
    """The others: what to call each, and why it cannot be read."""


def readable_batches(
    faces: Faces, batches: Iterable[np.ndarray], image_size: int, threads: int, max_megapixels: float
) -> Iterator[Readable]:
    """Decode batches of rows (int64 [b] each), in their order. Raises FailingDisk for an image that may be whole."""

    def read(rows: np.ndarray) -> Readable:
        images, errors = np.empty((len(rows), image_size, image_size, 3), dtype=np.uint8), {}

        def note(position: int, error: CorruptImage) -> None:
            if isinstance(error, FailingDisk):
                raise error
            errors[position] = str(error)

        decode_many(faces.encoded(rows), image_size, images, note, max_megapixels)
        kept = ~np.isin(np.arange(len(rows)), list(errors))
        damaged = [(faces.where(rows[position]), reason) for position, reason in errors.items()]
        return Readable(torch.from_numpy(images if not errors else images[kept]), rows[kept], damaged)

    return iter(Ahead(read, batches, threads))
