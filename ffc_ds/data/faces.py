"""Images with the names of their identities, read from memory-mapped columns: nothing here grows with their number."""

import difflib
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.copies import check_copies
from ffc_ds.data.decoding import read_image_file
from ffc_ds.data.failing_disk import FailingDisk, is_failing
from ffc_ds.errors import UserError

ROWS = 1 << 20  # whose labels are in memory at a time


class Faces:
    """Images, left encoded where they lie, each with the name of its identity: an integer from 0, or a text.

    Attributes:
        dataset: the HF dataset, its image column as undecoded {"bytes", "path"}.
        fingerprint: hexadecimal, changes with the data (`content`, by default the dataset's own fingerprint) and with
            the label column and the names of its classes.
        name: what to call the dataset in messages.

    Raises UserError when a column is missing or of the wrong kind, or the dataset is empty.
    """

    def __init__(
        self, dataset: datasets.Dataset, name: str, image_column: str, label_column: str, content: str | None = None
    ):
        self.name, self.label_column = name, label_column
        _check_columns(dataset, name, image_column, label_column)
        self.dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self._images = self.dataset.data.column(image_column)
        # Taking bytes from this, still memory-mapped, needs a quarter of the time of `dataset[rows]`.
        self._encoded, self._paths = (pc.struct_field(self._images, part) for part in ("bytes", "path"))
        self._labels, feature = self.dataset.data.column(label_column), dataset.features[label_column]
        names = class_names(feature)
        self._class_names = None if names is None else pa.array(names, pa.string())
        content = dataset._fingerprint if content is None else content
        about = f"{content} {label_column}{'' if names is None else f' {names}'}"
        self.fingerprint = hashlib.blake2b(about.encode(), digest_size=8).hexdigest()
        selected = self.dataset._indices  # rows of a dataset that was selected from or shuffled
        self._places = None if selected is None else selected.column(0)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def named(self) -> bool:
        """Identities are called by names, not by numbers, which mean something in their own split alone."""
        return self._class_names is not None or not pa.types.is_integer(self._labels.type)

    def labels(self) -> Iterator[pa.Array]:
        """The name of the identity of each image, in the order of rows: parts of them, int64 or large_string.

        Raises UserError, naming the row, for one that is missing, below 0, or beyond int64.
        """
        for start in range(0, len(self), ROWS):
            yield self.names(start, ROWS)

    def label(self, row: int) -> int | str:
        return self.names(int(row), 1)[0].as_py()

    def names(self, start: int, count: int) -> pa.Array:
        """`labels` of so many rows from `start` on."""
        labels = self._rows(self._labels, start, count)
        self._refuse(pc.is_null(labels), labels, start, "is missing")
        if not pa.types.is_integer(labels.type):
            names = labels.cast(pa.large_string())
            self._refuse(pc.equal(pc.utf8_trim_whitespace(names), ""), names, start, "is empty")
            return names
        # An unsigned label beyond int64 wraps to a negative one.
        self._refuse(pc.less(labels.cast(pa.int64(), safe=False), 0), labels, start, "is no identity: they start at 0")
        if self._class_names is None:
            return labels.cast(pa.int64())
        known = len(self._class_names)
        self._refuse(pc.greater_equal(labels, known), labels, start, f"is none of the {known} classes that are named")
        return self._class_names.take(labels).cast(pa.large_string())

    def paths(self, start: int, count: int) -> pa.Array:
        """Where the images of so many rows lie, or what the dataset calls them: texts, null where it has none."""
        return self._rows(self._paths, start, count)

    def encoded(self, rows: np.ndarray) -> list[bytes | CorruptImage]:
        """The encoded images of `rows` (int64 [k], duplicates allowed), in that order.

        One that has neither bytes nor a readable file is the error that says so: whoever decodes it, raises it.
        """
        rows = np.asarray(rows)
        places = rows if self._places is None else self._places.take(pa.array(rows)).to_numpy()
        found = [self._encoded[place].as_py() for place in places.tolist()]
        for missing in [i for i, one in enumerate(found) if one is None]:
            found[missing] = self._read_file(int(places[missing]))
        return found

    def check_copies(self) -> None:
        """Raise UserError if what is mapped is no longer there in full."""
        check_copies([Path(file["filename"]) for file in self.dataset.cache_files], self.name)

    def where(self, row: int) -> str:
        """What to call an image in messages."""
        return f"row {row} (label {self.label(row)}) of {self.name}"

    def _rows(self, column: pa.ChunkedArray, start: int, count: int) -> pa.Array:
        places = None if self._places is None else self._places.slice(start, count)
        return (column.slice(start, count) if places is None else column.take(places)).combine_chunks()

    def _refuse(self, wrong: pa.Array, labels: pa.Array, start: int, complaint: str) -> None:
        if not pc.any(wrong).as_py():
            return
        row, more = pc.index(wrong, True).as_py(), pc.sum(wrong).as_py() - 1
        label = "" if labels[row].as_py() is None else f"{labels[row].as_py()!r} "
        raise UserError(
            f"label column {self.label_column!r} of {self.name}: the label {label}in row {start + row} {complaint}"
            f"{f' (and {more:,} more)' if more else ''}; take such rows out, or choose another column"
        )

    def _read_file(self, place: int) -> bytes | CorruptImage:
        image = self._images[place].as_py()
        if image is None or image["path"] is None:
            return CorruptImage("it has no image bytes and no file")
        try:
            return read_image_file(image["path"])
        except CorruptImage as error:
            return error
        except OSError as error:
            kind = FailingDisk if is_failing(error) else CorruptImage
            return kind(f"{image['path']} cannot be read ({error.strerror or error})")


def class_names(feature: object) -> list[str] | None:
    """The names of the classes that the integers of a column stand for, if they stand for any."""
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def check_choice(wanted: str, available: Collection[str], complaint: str) -> None:
    """Raise UserError, with the nearest name there is, unless `wanted` is available."""
    if wanted not in available:
        close = difflib.get_close_matches(wanted, list(available), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{complaint} {wanted!r}, it has {', '.join(available)}{hint}")


def _check_columns(dataset: datasets.Dataset, name: str, image_column: str, label_column: str) -> None:
    for kind, column in (("image", image_column), ("label", label_column)):
        check_choice(column, dataset.column_names, f"{name} has no column for the {kind}s called")
    if len(dataset) == 0:
        raise UserError(f"{name} is empty: there is nothing to train on or to evaluate")
    image, label = dataset.features[image_column], dataset.features[label_column]
    others = f"choose another of {', '.join(dataset.column_names)}"
    undecoded = isinstance(image, dict) and set(image) == {"bytes", "path"}
    if not (isinstance(image, datasets.Image) or undecoded or _kind(image) in ("binary", "large_binary")):
        raise UserError(
            f"image column {image_column!r} of {name} holds {_kind(image)}, not images or their encoded bytes: {others}"
        )
    arrow = getattr(label, "pa_type", None) or pa.null()
    if not (pa.types.is_integer(arrow) or is_text(arrow)):
        first = dataset.select_columns([label_column])[0][label_column]
        raise UserError(
            f"label column {label_column!r} of {name} holds {_kind(label)} (row 0: {first!r:.50}), "
            f"but identities are integers or texts: {others}"
        )


def _kind(feature) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__
