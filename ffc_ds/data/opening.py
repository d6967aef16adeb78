"""Open a face dataset by name: on the hub, in a folder of data files or of images, saved to disk, or generated."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import yaml

from ffc_ds.data.content import Extents, content_fingerprint, everything
from ffc_ds.data.copies import check_cache
from ffc_ds.data.faces import Faces, check_choice
from ffc_ds.data.file_parts import lacking
from ffc_ds.data.generated import dataset as generated
from ffc_ds.data.image_folder.kinds import IMAGE_ENDINGS
from ffc_ds.data.image_folder.table import open_image_folder
from ffc_ds.data.parquet import label_extents, open_parquet
from ffc_ds.errors import UserError
from ffc_ds.progress import say_once

TABLES = (".parquet", ".arrow")
OTHER_DATA = (".tar", ".jsonl", ".json", ".csv")
LOOKED_AT = 10_000  # entries of a folder, before it is taken for one of images
REFUSALS = (OSError, ValueError, RuntimeError, yaml.YAMLError, datasets.exceptions.DatasetsError, pa.ArrowException)
SURPRISES = (KeyError, TypeError, AttributeError)  # of `datasets`, by files that lack what it takes for granted


class FaceSet:
    """A dataset with all its splits, memory-mapped. `content` changes with what is in it; by default that of a split
    is the split's own fingerprint."""

    def __init__(self, name: str, splits: Mapping[str, datasets.Dataset], columns: Sequence[str], content: str = ""):
        self.name, self.splits, self._columns, self._content = name, splits, columns, content

    def faces(self, split: str) -> Faces:
        """One split, or a part of it such as "train[:50%]", or several, "train+validation".

        Raises UserError when there is none, or its columns cannot be used.
        """
        content = f"{self._content} {split}" if self._content else None
        return Faces(self._select(split), f"split {split!r} of {self.name}", *self._columns, content)

    def _select(self, split: str) -> datasets.Dataset:
        if split in self.splits:
            return self.splits[split]
        names = dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+"))
        for name in names:
            check_choice(name, self.splits, f"dataset {self.name} has no split")
        whole = {name: self.splits[name] for name in names}  # the others need not be drawn
        try:
            lengths = {name: len(dataset) for name, dataset in whole.items()}
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
            chosen = [whole[part.splitname].select(range(part.from_, part.to)) for part in parts]
            return datasets.concatenate_datasets(chosen)
        except (ValueError, AssertionError, IndexError) as error:
            raise UserError(
                f"split {split!r} of {self.name} cannot be understood ({error}): write, for example, train, "
                "train[:50%], train[1000:] or train+validation"
            ) from error


def load_faces(name: str, split: str, image_column: str, label_column: str, config: str | None = None) -> Faces:
    """One split of the set that `open_set` opens, as `FaceSet.faces` has it."""
    return open_set(name, image_column, label_column, config).faces(split)


def open_set(name: str, image_column: str, label_column: str, config: str | None = None) -> FaceSet:
    """Open a dataset.

    Args:
        name: a dataset on the HF hub, a folder of parquet files or of images (a folder per identity), a folder written
            by `save_to_disk`, or "generated:..." (see `generated.parse`).
        image_column: holds images or their encoded bytes.
        label_column: holds the identities: integers from 0, gaps allowed, or texts.
        config: which of its configurations (the hub calls them subsets), where there are several.
    Raises:
        UserError: anything that does not exist or is not of that kind.
    """
    if not _is_first_rank():
        datasets.disable_progress_bars()
    columns = image_column, label_column
    if name.partition(":")[0] == "generated":
        _refuse_config(name, config)
        return FaceSet(name, _Generated(name), columns)
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return _open_folder(name, folder.resolve(), config, columns)  # a folder called parquet is no builder
        _refuse_paths(name, folder)
        _avoid_silent_hub()
        return FaceSet(name, datasets.load_dataset(name, config), columns)
    except ConnectionError as error:
        raise UserError(
            f"no folder {name} here, and the hub cannot be reached to look for a dataset of that name: check the path, "
            "or the connection"
        ) from error
    except (*REFUSALS, *SURPRISES) as error:
        check_cache(Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___"), name)
        raise _explained(name, error) from error


class _Generated(Mapping):
    """The splits of generated faces, each drawn when it is asked for."""

    def __init__(self, name: str):
        self._identities, self._size, self._mean = generated.parse(name)

    def __getitem__(self, split: str) -> datasets.Dataset:
        if split not in generated.FIRST_IDENTITY:
            raise KeyError(split)
        return generated.build(self._identities, split, self._size, mean=self._mean)

    def __iter__(self) -> Iterator[str]:
        return iter(generated.FIRST_IDENTITY)

    def __len__(self) -> int:
        return len(generated.FIRST_IDENTITY)

    def __contains__(self, split: object) -> bool:  # Mapping's own would draw it
        return split in generated.FIRST_IDENTITY


def _open_folder(name: str, folder: Path, config: str | None, columns: Sequence[str]) -> FaceSet:
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "ffc_ds"
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        splits = {str(saved.split or "train"): saved} if isinstance(saved, datasets.Dataset) else saved
        _refuse_config(name, config)
        files = [*folder.rglob("*.arrow"), *folder.rglob("state.json")]  # which says of what the others were made
        return FaceSet(name, splits, columns, content_fingerprint(_below(folder, files)))
    if not _holds_tables(folder):
        _refuse_config(name, config)
        return FaceSet(name, open_image_folder(folder), columns)
    builder = datasets.load_dataset_builder(str(folder), config)
    if builder.name == "imagefolder":  # which would call people by their last folder
        return FaceSet(name, open_image_folder(folder), columns)
    files = {str(split): sorted(map(str, paths)) for split, paths in builder.config.data_files.items()}
    for split, paths in files.items():
        if there := lacking(paths):
            raise UserError(
                f"{name} holds {there} of split {split}, by their names: get the others, or rename those that are to "
                "do alone"
            )
    if builder.config.name == "default" and _is_first_rank():  # of several, each has its own files
        _say_what_is_in_no_split(name, folder, files)
    features = builder.info.features
    if builder.name == "parquet":
        splits = open_parquet(files, columns, features, cache / "arrow")
        return FaceSet(name, splits, columns, _content(folder, files, features, label_extents(columns)))
    content = _content(folder, files, features, everything if builder.name in ("csv", "json") else None)
    # The copy that `datasets` makes goes by time stamps, so each content gets a place of its own.
    place = str(cache / "opened" / content)
    try:
        splits = datasets.load_dataset(str(folder), config, cache_dir=place)
    except (OSError, ValueError, AttributeError, pa.ArrowException):
        check_cache(Path(place), name)
        raise
    return FaceSet(name, splits, columns, content)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _refuse_config(name: str, config: str | None) -> None:
    if config is not None:
        raise UserError(f"{name} has no configurations to choose {config!r} from: leave that out")


def _say_what_is_in_no_split(name: str, folder: Path, files: Mapping[str, Sequence[str]]) -> None:
    """Of files that are called train and test, `datasets` takes no others."""
    used = {os.path.relpath(path, folder) for paths in files.values() for path in paths}
    endings = tuple({os.path.splitext(path)[1] for path in used})
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    visible = (str(path) for path in found if not any(part.startswith((".", "__")) for part in path.parts))
    if left := sorted(path for path in visible if path.endswith(endings) and path not in used):
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        say_once(f"{name}: left out, because in no split by name: {left[0]}{more}")


def _content(folder: Path, files: Mapping[str, Sequence[str]], features, whole: Extents | None) -> str:
    """Of these files as these splits, whose columns are what they say or, as in README.md, which is none of them,
    `features`."""
    named = [(f"{split} {os.path.relpath(path, folder)}", Path(path)) for split in files for path in files[split]]
    content = content_fingerprint(named, whole=whole)
    if features is None:
        return content
    return hashlib.blake2b(f"{content} {features}".encode(), digest_size=16).hexdigest()


def _below(folder: Path, paths) -> list[tuple[str, Path]]:
    return [(os.path.relpath(path, folder), path) for path in paths]


def _holds_tables(folder: Path) -> bool:
    """Whether these are data files rather than images."""
    top = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    others = any(entry.name.endswith(OTHER_DATA) for entry in top)
    if others and not any(entry.is_dir() for entry in top):
        return True
    looked_at = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        beside_images = place != str(folder) and any(name.lower().endswith(IMAGE_ENDINGS) for name in files)
        if not beside_images and any(name.endswith(TABLES) for name in files):
            return True
        looked_at += len(files)
        if looked_at > LOOKED_AT:
            return False
    return False


def _refuse_paths(name: str, folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{name} is a file: give the folder that holds the parquet files or images")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"no dataset folder {name}: check the path (a dataset on the hub is called OWNER/NAME)")


def _explained(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, SURPRISES):  # these say little more than a name
        reason = f"{type(error).__name__}: {reason}"
    cache, file = Path(datasets.config.HF_DATASETS_CACHE), getattr(error, "filename", None)
    if isinstance(file, str) and (Path(file).is_relative_to(cache) or cache.is_relative_to(file)):
        return UserError(
            f"dataset {name} cannot be copied to the cache {cache} ({reason}): mend that, or set HF_DATASETS_CACHE to "
            "another folder"
        )
    if "corresponds to no data" in reason or "BatchSize must be greater than 0" in reason:
        return UserError(f"dataset {name} has an empty split or file: remove it, or put images in it")
    if "Config name is missing" in reason or "BuilderConfig" in reason:
        there = re.search(r"\[.*?\]", reason)
        return UserError(
            f"dataset {name} has the configurations {there[0] if there else reason}: choose one, with --data.config in "
            "training and --data_config elsewhere"
        )
    return UserError(f"cannot open dataset {name} ({reason}): check the name and the files")


def _avoid_silent_hub() -> None:
    """Ask the hub once, since `load_dataset` retries a silent one for half a minute before it looks in its cache."""
    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(datasets.config.HF_ENDPOINT, timeout=5)
    except Exception:  # the HTTP client's own kinds of error change with its version
        datasets.config.HF_HUB_OFFLINE = True
