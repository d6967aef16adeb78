"""The images of a training: several sets as one, and substitutes for images that cannot be read or decoded."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.opening import FaceSet
from ffc_ds.errors import shared

TEXT = pa.large_string()
JUDGED = 500  # images; among fewer, a few damaged ones say little


def joined(sets: Sequence[FaceSet], split: str, alone: bool) -> "Faces | JointFaces":
    """That split of the only one of the sets, if it stands `alone`, or of all of them as one. Raises UserError."""
    faces = [each.faces(split) for each in sets]
    return faces[0] if alone else JointFaces(faces, [each.name for each in sets])


class JointFaces:
    """Several sets one after another, read as one `Faces`. Each keeps its own identities, none is in two of them: they
    are called SET/NAME, by the last part of a set's path where that tells the sets apart."""

    def __init__(self, sets: Sequence[Faces], paths: Sequence[str]):
        self.sets, self.name = sets, " + ".join(faces.name for faces in sets)
        known = {}
        for path, faces in zip(paths, sets, strict=True):
            if faces.fingerprint in known:
                raise shared(f"{path} is the same set as {known[faces.fingerprint]}: its people would be others.")
            known[faces.fingerprint] = path
        short = [Path(path).name for path in paths]
        self.named = all(faces.named for faces in sets)
        self._called = short if len(set(short)) == len(short) else list(paths)
        self._first_rows = np.cumsum([0, *[*map(len, sets)][:-1]])
        parts = (f"{called} {faces.fingerprint}" for called, faces in zip(self._called, sets, strict=True))
        self.fingerprint = hashlib.blake2b(" ".join(parts).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def labels(self) -> Iterator[pa.Array]:
        """As `Faces.labels`, large_string."""
        for called, faces in zip(self._called, self.sets, strict=True):
            for part in faces.labels():
                yield pc.binary_join_element_wise(pa.scalar(called, TEXT), part.cast(TEXT), pa.scalar("/", TEXT))

    def label(self, row: int) -> str:
        number = self._set_of(row)
        return f"{self._called[number]}/{self.sets[number].label(row - self._first_rows[number])}"

    def encoded(self, rows: np.ndarray) -> list[bytes | CorruptImage]:
        """As `Faces.encoded`."""
        of_set, found = self._set_of(rows), []
        for number in np.unique(of_set):
            found += self.sets[number].encoded(rows[of_set == number] - self._first_rows[number])
        return [found[place] for place in np.argsort(np.argsort(of_set, kind="stable"))]

    def check_copies(self) -> None:
        """As `Faces.check_copies`."""
        for faces in self.sets:
            faces.check_copies()

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
        self.check_copies = faces.check_copies

    def substitutes(self, row: int) -> np.ndarray:
        """The other images of an image's identity, int64, in the order in which to try them: from the next one on."""
        index = self.index
        identity = bisect_left(range(index.identities), self.faces.label(row), key=lambda i: index.names[i].as_py())
        own = index.images[index.offsets[identity] : index.offsets[identity + 1]]
        return np.roll(own, -np.searchsorted(own, row))[1:]


def check_replaced(replaced: int, seen: int, most: float) -> None:
    """Raise UserError if more than the share `most` of the images that were seen so far, by all ranks, were replaced:
    then it is no longer a matter of single images. To be called on all ranks alike."""
    if seen >= JUDGED and replaced > most * seen:
        raise shared(
            f"{replaced:,} of the {seen:,} images seen so far ({replaced / seen:.2%}) could not be read or decoded, "
            f"more than data.max_replaced {most:g} allows. Mend those that are named above, or the disk that they are "
            "on, and go on with --resume auto; or allow more."
        )
