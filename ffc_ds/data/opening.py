"""Open a face dataset by name: on the hub, in a folder of data files or of images, saved to disk, or generated."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import datasets
import huggingface_hub
import pyarrow as pa

from ffc_ds.data.content import content_fingerprint
from ffc_ds.data.faces import Faces, check_choice
from ffc_ds.data.parquet import open_parquet
from ffc_ds.errors import UserError

GENERATED_SPLITS = ("train", "test")
TABLES = (".parquet", ".arrow")
OTHER_DATA = (".tar", ".jsonl", ".json", ".csv")
LOOKED_AT = 10_000  # entries of a folder, before it is taken for one of images


class Opened(NamedTuple):
    """Every split of a dataset, memory-mapped, and what changes with its content (by default the splits' own)."""

    splits: Mapping[str, datasets.Dataset]
    content: str | None = None


def load_faces(name: str, split: str, image_column: str, label_column: str, config: str | None = None) -> Faces:
    """Open one split of a dataset.

    Args:
        name: a dataset on the HF hub, a folder of parquet files or of images (a folder per identity), a folder written
            by `save_to_disk`, or "generated:..." (see `generated.parse`).
        split: its split, or a part of it such as "train[:50%]", or several, "train+validation".
        image_column: holds images or their encoded bytes.
        label_column: holds the identities: integers from 0, gaps allowed, or texts.
        config: which of its configurations (the hub calls them subsets), where there are several.
    Raises:
        UserError: anything that does not exist or is not of that kind.
    """
    if os.environ.get("RANK", "0") != "0":
        datasets.disable_progress_bars()
    if _is_generated(name):
        wanted = _split_names(split)
        for each in wanted:
            check_choice(each, GENERATED_SPLITS, f"dataset {name} has no split")
        opened = Opened({each: _generate(name, each) for each in wanted})
    else:
        opened = _open(name, config, (image_column, label_column))
    dataset = _select(opened.splits, split, name)
    content = None if opened.content is None else f"{opened.content} {split}"
    return Faces(dataset, f"split {split!r} of {name}", image_column, label_column, content)


def has_split(name: str, split: str, image_column: str, label_column: str, config: str | None = None) -> bool:
    """Whether the dataset has that split. Raises UserError when there is no such dataset."""
    return split in (
        GENERATED_SPLITS if _is_generated(name) else _open(name, config, (image_column, label_column)).splits
    )


def _split_names(split: str) -> list[str]:
    return [part.partition("[")[0] for part in re.split(r"\s*\+\s*", split.strip())]


def _select(splits: Mapping[str, datasets.Dataset], split: str, name: str) -> datasets.Dataset:
    if split in splits:
        return splits[split]
    for each in _split_names(split):
        check_choice(each, splits, f"dataset {name} has no split")
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({key: len(each) for key, each in splits.items()})
        return datasets.concatenate_datasets(
            [splits[each.splitname].select(range(each.from_, each.to)) for each in parts]
        )
    except (ValueError, AssertionError, IndexError) as error:
        raise UserError(
            f"split {split!r} of {name} cannot be understood ({error}): write, for example, train, train[:50%], "
            "train[1000:] or train+validation"
        ) from error


def _is_generated(name: str) -> bool:
    return name.partition(":")[0] == "generated"


def _generate(name: str, split: str) -> datasets.Dataset:
    from ffc_ds.data.generated import dataset as generated

    identities, size = generated.parse(name)
    return generated.build(identities, split, size)


def _open(name: str, config: str | None, columns: Sequence[str]) -> Opened:
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return _open_folder(folder, config, columns)
        _refuse_paths(name, folder)
        _avoid_silent_hub()
        return Opened(datasets.load_dataset(name, config, num_proc=_processes()))
    except ConnectionError as error:
        raise UserError(
            f"no folder {name} here, and the hub cannot be reached to look for a dataset of that name: check the path, "
            "or the connection"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        raise _explained(name, error) from error


def _open_folder(folder: Path, config: str | None, columns: Sequence[str]) -> Opened:
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "ffc_ds"
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        splits = {str(saved.split or "train"): saved} if isinstance(saved, datasets.Dataset) else saved
        return Opened(splits, content_fingerprint(_below(folder, folder.rglob("*.arrow"))))
    if not _holds_tables(folder):
        from ffc_ds.data.image_folder import open_image_folder

        return Opened(open_image_folder(folder))
    builder = datasets.load_dataset_builder(str(folder), config)
    files = {str(split): sorted(map(str, paths)) for split, paths in builder.config.data_files.items()}
    content = content_fingerprint(_below(folder, [Path(path) for paths in files.values() for path in paths]))
    if builder.name == "parquet":
        return Opened(open_parquet(files, columns, builder.info.features, cache / "arrow"), content)
    # The copy that `datasets` makes goes by time stamps, so each content gets a place of its own.
    place = str(cache / "opened" / content)
    return Opened(datasets.load_dataset(str(folder), config, cache_dir=place, num_proc=_processes()), content)


def _below(folder: Path, paths) -> list[tuple[str, Path]]:
    return [(os.path.relpath(path, folder), path) for path in paths]


def _holds_tables(folder: Path) -> bool:
    """Whether these are data files rather than images."""
    top = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    others = any(entry.name.endswith(OTHER_DATA) for entry in top)
    if others and not any(entry.is_dir() for entry in top):
        return True
    return any(name.endswith(TABLES) for name in islice(_visible_files(folder), LOOKED_AT))


def _visible_files(folder: Path) -> Iterator[str]:
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from files


def _processes() -> int | None:
    cores = len(os.sched_getaffinity(0))
    return cores if cores > 1 else None


def _refuse_paths(name: str, folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{name} is a file: give the folder that holds the parquet files or images")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"no dataset folder {name}: check the path (a dataset on the hub is called OWNER/NAME)")


def _explained(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error.__cause__ or error).split())
    if "corresponds to no data" in reason or "BatchSize must be greater than 0" in reason:
        return UserError(f"dataset {name} has an empty split or file: remove it, or put images in it")
    if "Config name is missing" in reason or "BuilderConfig" in reason:
        there = re.search(r"\[.*?\]", reason)
        return UserError(f"dataset {name} has the configurations {there[0] if there else reason}: choose --data.config")
    return UserError(f"cannot open dataset {name} ({reason}): check the name and the files")


def _avoid_silent_hub() -> None:
    """Ask the hub once, since `load_dataset` retries a silent one for half a minute before it looks in its cache."""
    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.get_session().head(datasets.config.HF_ENDPOINT, timeout=5)
    except Exception:  # the HTTP client's own kinds of error change with its version
        datasets.config.HF_HUB_OFFLINE = True
