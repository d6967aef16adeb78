"""Images in files of their own, and folders of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ffc_ds.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class ImageFiles:
    """Images given by their paths, read as `data.loading.Faces` are. `name` is for messages."""

    def __init__(self, paths: Sequence[str], name: str):
        self.paths, self.name = paths, name

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> str:
        return self.paths[row]

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """The files' bytes. Raises UserError for one that cannot be read."""
        try:
            return [Path(self.paths[row]).read_bytes() for row in rows]
        except OSError as error:
            raise UserError(f"image {error.filename} cannot be read: {error.strerror}") from None


def images_below(folder: str | os.PathLike) -> list[str]:
    """Paths of all images in a folder and the folders in it, in an order that is the same everywhere."""
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        found += [os.path.join(place, file) for file in sorted(files) if file.lower().endswith(SUFFIXES)]
    return found
