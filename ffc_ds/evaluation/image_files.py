"""Images in files of their own, and folders of them."""

import os
from collections.abc import Sequence

import numpy as np

from ffc_ds.data.decoding import read_image_file
from ffc_ds.data.image_folder.people import by_folder
from ffc_ds.data.image_folder.walk import Walk, walk
from ffc_ds.data.importers.plan import printable
from ffc_ds.errors import UserError
from ffc_ds.progress import say_once


class ImageFiles:
    """Images given by their paths, read as `data.faces.Faces` are. `name` is for messages."""

    def __init__(self, paths: Sequence[str], name: str):
        self.paths, self.name = paths, name

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> str:
        return self.paths[row]

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """The files' bytes. Raises UserError for one that cannot be read."""
        try:
            return [read_image_file(self.paths[row]) for row in rows]
        except OSError as error:
            raise UserError(f"image {error.filename} cannot be read: {error.strerror}") from None


def images_below(folder: str | os.PathLike) -> list[str]:
    """Paths of all images in a folder and the folders in it, in an order that is the same everywhere."""
    return [os.path.join(folder, path) for path in walk(folder).images]


def read_probes(folder: str) -> tuple[ImageFiles, np.ndarray]:
    """Images FOLDER/PERSON/**/IMAGE of the people who have two or more, and the person (int64) of each image.

    All are one person's where they lie in the folder itself. Raises UserError if nobody has two.
    """
    found = _some(folder)
    people = by_folder(found.images, 0)
    if len(people) > 1:
        for path in people.pop("", []):
            found.left_out["in no person's folder"].append(path)
    for path in [paths[0] for paths in people.values() if len(paths) == 1]:
        found.left_out["a person's only image"].append(path)
    known = [paths for paths in people.values() if len(paths) > 1]
    if not known:
        raise UserError(
            f"nobody in {folder} has two images: it must hold a folder of some for each person; {found.left_out}"
        )
    images = ImageFiles([os.path.join(folder, path) for paths in known for path in paths], folder)
    _say(found, f"{len(known):,} people, {len(images):,} images")
    return images, np.repeat(np.arange(len(known)), [len(paths) for paths in known])


def read_distractors(folder: str) -> ImageFiles:
    """All images in a folder and the folders in it. Raises UserError if there are none."""
    found = _some(folder)
    _say(found, f"{len(found.images):,} images")
    return ImageFiles([os.path.join(folder, path) for path in found.images], folder)


def _some(folder: str) -> Walk:
    found = walk(folder)
    if not found.images:
        raise UserError(f"there are no images in {folder}: check the path; {found.left_out}")
    return found


def _say(found: Walk, what: str) -> None:
    if found.left_out:
        say_once(f"{printable(found.root)}: {what}; {found.left_out}")
