"""Open a face dataset by name, check its columns, read its encoded images."""

import difflib
import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ffc_ds.errors import UserError

GENERATED_SPLITS = ("train", "test")


class Faces:
    """Images with integer identity labels, left encoded where they lie.

    Attributes:
        dataset: the HF dataset, its image column as undecoded {"bytes", "path"}.
        labels: int64 [n], the dataset's own labels, read anew at each access.
        fingerprint: hexadecimal, changes with the data or the label column.
        name: what to call the dataset in messages.

    Raises UserError when a column is missing or of the wrong kind, or the dataset is empty.
    """

    def __init__(self, dataset: datasets.Dataset, name: str, image_column: str, label_column: str):
        self.name = name
        _check_columns(dataset, name, image_column, label_column)
        self._labels = _label_column(dataset, name, label_column)
        if (labels := self.labels).min() < 0:
            raise UserError(
                f"label column {label_column!r} of {name} holds {labels.min()} in row {labels.argmin()}, but labels "
                "start at 0: remove such rows or number the identities anew"
            )
        self.fingerprint = hashlib.blake2b(f"{dataset._fingerprint} {label_column}".encode(), digest_size=8).hexdigest()
        self.dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self._images = self.dataset.data.column(image_column)
        # Taking bytes from this, still memory-mapped, needs a quarter of the time of `dataset[rows]`.
        self._encoded = pc.struct_field(self._images, "bytes")
        selected = self.dataset._indices  # rows of a dataset that was selected from or shuffled
        self._places = None if selected is None else selected.column(0)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> np.ndarray:
        # An unsigned label beyond int64 wraps to a negative one and is refused with them.
        return self._labels.to_numpy().astype(np.int64, copy=False)

    def label(self, row: int) -> int:
        return self._labels[int(row)].as_py()

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """The encoded images of `rows` (int64 [k], duplicates allowed), in that order.

        Raises UserError when an image has neither bytes nor a readable file.
        """
        rows = np.asarray(rows)
        places = rows if self._places is None else self._places.take(pa.array(rows)).to_numpy()
        found = [self._encoded[place].as_py() for place in places.tolist()]
        for missing in [i for i, one in enumerate(found) if one is None]:
            found[missing] = self._read_file(rows[missing], int(places[missing]))
        return found

    def where(self, row: int) -> str:
        """What to call an image in messages."""
        return f"row {row} (label {self.label(row)}) of {self.name}"

    def _read_file(self, row: int, place: int) -> bytes:
        try:
            return Path(self._images[place]["path"].as_py()).read_bytes()
        except (OSError, TypeError) as error:
            raise UserError(f"{self.where(row)} has no image bytes and no readable file ({error})") from error


def load_faces(name: str, split: str, image_column: str, label_column: str) -> Faces:
    """Open one split of a dataset.

    Args:
        name: a dataset on the HF hub, a folder of parquet files or of images (a folder per identity), a folder written
            by `save_to_disk`, or "generated:..." (see `generated.parse`).
        split: its split.
        image_column: holds images or their encoded bytes.
        label_column: holds the identities: integers from 0, gaps allowed.
    Raises:
        UserError: anything that does not exist or is not of that kind.
    """
    if os.environ.get("RANK", "0") != "0":
        datasets.disable_progress_bars()
    if _is_generated(name):
        _check_choice(split, GENERATED_SPLITS, f"dataset {name} has no split")
        dataset = _generate(name, split)
    else:
        splits = _open(name)
        _check_choice(split, splits, f"dataset {name} has no split")
        dataset = splits[split]
    return Faces(dataset, f"split {split!r} of {name}", image_column, label_column)


def has_split(name: str, split: str) -> bool:
    """Whether the dataset has that split. Raises UserError when there is no such dataset."""
    return split in (GENERATED_SPLITS if _is_generated(name) else _open(name))


def _is_generated(name: str) -> bool:
    return name.partition(":")[0] == "generated"


def _generate(name: str, split: str) -> datasets.Dataset:
    from ffc_ds.data.generated import dataset as generated

    identities, size = generated.parse(name)
    return generated.build(identities, split, size)


def _open(name: str) -> Mapping[str, datasets.Dataset]:
    """Every split of a dataset, memory-mapped."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(f"{name} is a file: give the folder that holds the parquet files or images")
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise UserError(f"no dataset folder {name}: check the path (a dataset on the hub is called OWNER/NAME)")
        _avoid_silent_hub()
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        if (folder / "state.json").is_file():
            dataset = datasets.load_from_disk(str(folder))
            return {str(dataset.split or "train"): dataset}
        return datasets.load_dataset(str(folder) if folder.is_dir() else name)
    except ConnectionError as error:
        raise UserError(
            f"no folder {name} here, and the hub cannot be reached to look for a dataset of that name: check the path, "
            "or the connection"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        if "corresponds to no data" in reason or "BatchSize must be greater than 0" in reason:
            raise UserError(f"dataset {name} has an empty split or file: remove it, or put images in it") from error
        raise UserError(f"cannot open dataset {name} ({reason}): check the name and the files") from error


def _avoid_silent_hub() -> None:
    """Ask the hub once, since `load_dataset` retries a silent one for half a minute before it looks in its cache."""
    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(datasets.config.HF_ENDPOINT, timeout=5)
    except Exception:  # the HTTP client's own kinds of error change with its version
        datasets.config.HF_HUB_OFFLINE = True


def _check_columns(dataset: datasets.Dataset, name: str, image_column: str, label_column: str) -> None:
    for kind, column in (("image", image_column), ("label", label_column)):
        _check_choice(column, dataset.column_names, f"{name} has no column for the {kind}s called")
    image = dataset.features[image_column]
    undecoded = isinstance(image, dict) and set(image) == {"bytes", "path"}
    if not (isinstance(image, datasets.Image) or undecoded or _kind(image) in ("binary", "large_binary")):
        raise UserError(
            f"image column {image_column!r} of {name} holds {_kind(image)}, not images or their encoded bytes: choose "
            f"another of {', '.join(dataset.column_names)}"
        )
    label = dataset.features[label_column]
    if not pa.types.is_integer(getattr(label, "pa_type", None) or pa.null()):
        raise UserError(
            f"label column {label_column!r} of {name} holds {_kind(label)}, not integers: number the identities from 0 "
            f"first, or choose another of {', '.join(dataset.column_names)}"
        )


def _label_column(dataset: datasets.Dataset, name: str, label_column: str) -> pa.ChunkedArray:
    if len(dataset) == 0:
        raise UserError(f"{name} is empty: there is nothing to train on or to evaluate")
    column = dataset.select_columns([label_column]).with_format("arrow")[:][label_column]
    if column.null_count:
        raise UserError(f"label column {label_column!r} of {name} has {column.null_count} missing values: remove them")
    return column


def _check_choice(wanted: str, available: Collection[str], complaint: str) -> None:
    if wanted not in available:
        close = difflib.get_close_matches(wanted, list(available), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{complaint} {wanted!r}, it has {', '.join(available)}{hint}")


def _kind(feature) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__
