"""The images of a training: several sets as one, and substitutes for images that cannot be decoded."""

import hashlib
from collections.abc import Sequence

import numpy as np

from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.loading import Faces, load_faces
from ffc_ds.errors import UserError


def load_sets(names: str | Sequence[str], split: str, image_column: str, label_column: str) -> "Faces | JointFaces":
    """`load_faces` of one name or several. Raises UserError."""
    if isinstance(names, str):
        return load_faces(names, split, image_column, label_column)
    return JointFaces([load_faces(name, split, image_column, label_column) for name in names])


class JointFaces:
    """Several sets one after another, read as one `Faces`. Each keeps its own labels: an identity is never in two.

    Raises UserError when the labels do not fit into one int64 column.
    """

    def __init__(self, sets: Sequence[Faces]):
        self.sets, self.name = sets, " + ".join(faces.name for faces in sets)
        spans = [int(faces.labels.max()) + 1 for faces in sets]
        if sum(spans) >= 2**63:
            raise UserError(f"the labels of {self.name} are too large to be joined: number the identities from 0 first")
        self._first_rows, self._first_labels = (np.cumsum([0, *each[:-1]]) for each in ([*map(len, sets)], spans))
        self.fingerprint = hashlib.blake2b(" ".join(f.fingerprint for f in sets).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate(
            [faces.labels + first for faces, first in zip(self.sets, self._first_labels, strict=True)]
        )

    def label(self, row: int) -> int:
        number = self._set_of(row)
        return self.sets[number].label(row - self._first_rows[number]) + self._first_labels[number]

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images of `rows` (int64 [k], duplicates allowed), in that order. Raises UserError."""
        of_set, found = self._set_of(rows), []
        for number in np.unique(of_set):
            found += self.sets[number].encoded(rows[of_set == number] - self._first_rows[number])
        return [found[place] for place in np.argsort(np.argsort(of_set, kind="stable"))]

    def where(self, row: int) -> str:
        """What to call an image in messages: its row and label in its own set."""
        number = self._set_of(row)
        return self.sets[number].where(row - self._first_rows[number])

    def _set_of(self, rows):
        return np.searchsorted(self._first_rows, rows, side="right") - 1


class TrainingFaces:
    """Faces (or joint ones) whose damaged images give way to others of the same identity in `index`."""

    def __init__(self, faces: Faces | JointFaces, index: IdentityIndex):
        self.faces, self.index = faces, index
        self.name, self.encoded, self.where = faces.name, faces.encoded, faces.where

    def substitutes(self, row: int) -> np.ndarray:
        """The other images of an image's identity, int64, in the order in which to try them: from the next one on."""
        index = self.index
        identity = np.searchsorted(index.names, self.faces.label(row))
        own = index.images[index.offsets[identity] : index.offsets[identity + 1]]
        return np.roll(own, -np.searchsorted(own, row))[1:]
