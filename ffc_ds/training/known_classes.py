"""Classes of an earlier run that go on in a new one (head.weights): found by the names of their identities.

Every rank looks for its own rows among all names of the earlier run, a part of them at a time, and reads those rows.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ffc_ds.config.comparison import check_handing_on
from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.parquet import READ_BYTES
from ffc_ds.distributed import all_gather, broadcast_object, rank, shard_bounds, to_device, together, world_size
from ffc_ds.errors import UserError, shared
from ffc_ds.heads.base import Head
from ffc_ds.progress import say
from ffc_ds.training import checkpoints
from ffc_ds.training.checkpoint import IDENTITIES, read_about, read_host_state
from ffc_ds.training.manifest import MANIFEST, find_damage
from ffc_ds.training.saved_rows import SavedRows

NAMES = 1 << 22  # in memory at once, or as many as are looked for
ROWS = 1 << 16  # read at once
TEXT = pa.large_string()


class Source(NamedTuple):
    """A checkpoint to take classes from: `drawn` if they are centers made of features, and the data that its run was
    trained on."""

    folder: Path
    drawn: bool
    train: str | list[str] | None


def take_known_classes(
    head: Head, config: Config, index: IdentityIndex, named: bool, device: torch.device, shown: Callable
) -> np.ndarray:
    """Let `head`, as it was made, begin with the classes of config.head.weights. Returns whose they are, bool
    [identities]. All ranks call it.

    named: identities have names, and not just numbers; shown: wraps what is gone through, to show how far it is.
    Raises UserError on all ranks if there are no such classes, if they do not fit, or if they are of nobody here.
    """
    folder = _checkpoint(Path(config.head.weights))
    source = together(lambda: _source(folder, config))
    saved = together(lambda: SavedRows(folder))
    start, end = shard_bounds(index.identities, rank(), world_size())
    own = together(lambda: _find(index.names.slice(start, end - start), source, config))
    known = np.zeros(-(-index.identities // world_size()), np.uint8)
    known[: len(own)] = own >= 0
    known = all_gather(to_device(known, device)).flatten()[: index.identities].numpy(force=True).astype(bool)
    if not known.any():
        raise shared(_nobody(source, index))
    shards = head.shards()
    kept = sorted(shards.keys() & saved.shapes.keys())
    together(lambda: _check_shapes(source, saved, {name: shards[name].local.shape[1] for name in kept}))
    rescaled = source.drawn != (config.head.name == "ffc")
    together(lambda: _take(head, saved, own, kept, rescaled, device, shown))
    if len(kept) > 1 and (updates := together(lambda: read_host_state(folder)).get("updates")) is not None:
        head.take_updates(int(updates))
    if rank() == 0:
        _tell(source, np.count_nonzero(known), len(known), saved.shapes["weights"][0], kept, named)
    return known


def _checkpoint(given: Path) -> Path:
    """The folder itself, or the newest undamaged checkpoint of the run in it."""
    if broadcast_object(os.path.exists(given / MANIFEST)):
        if (damage := find_damage(given)) is not None:
            raise shared(f"head.weights: {damage}")
        return given
    newest = checkpoints.newest(given / "checkpoints")
    if newest is None:
        raise shared(
            f"head.weights {given}: there is no undamaged checkpoint in {given / 'checkpoints'}. It must be the "
            "output_dir of a run, or a step-N folder of one."
        )
    return newest


def _source(folder: Path, config: Config) -> Source:
    """Raises UserError if this checkpoint has no classes that could be taken over."""
    about = read_about(folder)
    check_handing_on(str(folder), about["identity"], config)
    if not (folder / IDENTITIES).is_file():
        raise UserError(
            f"head.weights: {folder} has no {IDENTITIES}, it is of an earlier version. Copy the one in the folder of "
            "its run there."
        )
    return Source(folder, about["identity"]["head.name"] == "ffc", about.get("config", {}).get("data", {}).get("train"))


def _find(own: pa.Array, source: Source, config: Config) -> np.ndarray:
    """The row of each of the identities `own` among those of the source, int64 [own], -1 for those that are new.

    A set that is one of several in one run and stands alone in the other calls its people SET/NAME here, NAME there.
    Raises UserError for a name that stands twice, or that the names cannot be read.
    """
    here, there = config.data.train, source.train
    if isinstance(there, list) and isinstance(here, str):
        own = _prefixed(own, here)
    prefix = there if isinstance(there, str) and isinstance(here, list) else None
    found = np.full(len(own), -1)
    for first, names in _names(source.folder, max(NAMES, len(own))):  # for each part, `own` is hashed anew
        names = names if prefix is None else _prefixed(names, prefix)
        if names.type != own.type:
            own = own.cast(TEXT)
        places = pc.index_in(names.cast(own.type), value_set=own)
        rows = np.flatnonzero(places.is_valid())
        places = places.drop_null().to_numpy()
        distinct, times = np.unique(places, return_counts=True)
        twice = distinct[(times > 1) | (found[distinct] >= 0)]
        if len(twice):
            raise UserError(
                f"head.weights: {source.folder / IDENTITIES} has the name {own[twice[0]].as_py()!r} twice: "
                "whose class is whose cannot be known."
            )
        found[places] = first + rows
    return found


def _prefixed(names: pa.Array, path: str) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(Path(path).name, TEXT), names.cast(TEXT), pa.scalar("/", TEXT))


def _names(folder: Path, at_once: int) -> Iterator[tuple[int, pa.Array]]:
    """The names of a checkpoint, in parts of so many, each with the number of its first one."""
    first = 0
    try:
        file = pq.ParquetFile(folder / IDENTITIES, pre_buffer=False, buffer_size=READ_BYTES)
        for batch in file.iter_batches(at_once, columns=["identity"]):
            yield first, batch.column(0)
            first += len(batch)
    except (OSError, pa.ArrowException, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"head.weights: {folder / IDENTITIES} cannot be read: {reason}.") from error


def _nobody(source: Source, index: IdentityIndex) -> str:
    there = next(_names(source.folder, 1))[1][0].as_py()
    return (
        f"head.weights: none of the {index.identities:,} identities here is in {source.folder}, by their names, which "
        f"are such as {index.names[0].as_py()!r} here and {there!r} there. What prepare_data.py wrote has numbers in "
        "its column label and names in its column identity (data.label_column)."
    )


def _check_shapes(source: Source, saved: SavedRows, widths: dict[str, int]) -> None:
    names = pq.read_metadata(source.folder / IDENTITIES).num_rows
    for name, width in ({"weights": 0} | widths).items():
        if (found := saved.shapes.get(name)) != (names, width):
            raise UserError(
                f"head.weights: {source.folder} has {found or 'no'} numbers of head.{name}, which do not go with its "
                f"{names} names and a width of {width} here."
            )


def _take(
    head: Head,
    saved: SavedRows,
    own: np.ndarray,
    kept: list[str],
    rescaled: bool,
    device: torch.device,
    shown: Callable,
) -> None:
    """own: see `_find`."""
    rows = np.flatnonzero(own >= 0)
    rows = rows[np.argsort(own[rows], kind="stable")]
    for part in shown(np.array_split(rows, -(-len(rows) // ROWS)) if len(rows) else []):
        state = {name: saved.read(name, own[part]) for name in kept}
        head.take_rows(to_device(part, device), state, rescaled)


def _tell(source: Source, kept: int, identities: int, there: int, shards: list[str], named: bool) -> None:
    others = [name for name in shards if name != "weights"]
    also = f" with {' and '.join(others)}" if others else ""
    new, dropped = identities - kept, there - kept
    say(f"head.weights {source.folder}: {kept:,} identities kept{also}, {new:,} new, {dropped:,} dropped")
    if not named:
        say(
            "warning: identities are numbers, and whoever has the same number there and here is taken for the same. "
            "An import numbers people anew; their names are in its column identity: --data.label_column identity"
        )
