"""Copy, write and load one checkpoint: a folder step-N that has this name only when it is complete and on the disk.

    step-N/backbone/       safetensors: weights and optimizer state of the probe net, in fp32, for any ranks
    step-N/class/          torch.distributed.checkpoint: the sharded class state, the nets that follow, for any ranks
    step-N/host.npz        class state that is the same on all ranks, such as the index of the pool
    step-N/identities.parquet  where each identity has a row of class state: their names, in the order of the rows
    step-N/run.json        where the run stood, and what model and head it is about
    step-N/manifest.json   size and checksum of every other file

It is written from a copy in host memory, of which each rank has a part, so that training can go on meanwhile.
There is no state of random generators: every random choice is a function of seed, step and rank. A checkpoint is data:
nothing in it is run when it is loaded, whoever made it.
"""

import errno
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from torch.distributed.tensor import DTensor

from ffc_ds.config.documents import read_json
from ffc_ds.distributed import Aside, rank, same_everywhere, together, world_size
from ffc_ds.errors import UserError, shared
from ffc_ds.heads.base import Head
from ffc_ds.training.backbone_state import BackboneCopy
from ffc_ds.training.class_state import copy_class_state, load_class_state, write_class_state
from ffc_ds.training.engine import Engine
from ffc_ds.training.manifest import Writer, sync

IDENTITIES = "identities.parquet"
NAMES = 1 << 22  # in a part of that file
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class Copy(NamedTuple):
    """The state of a run after `step` steps, this rank's part of it, in host memory: no later step changes it."""

    step: int
    backbone: BackboneCopy
    class_state: dict[str, Tensor]
    host_state: dict[str, np.ndarray]
    run: bytes
    names: pa.Array | None

    @property
    def bytes(self) -> int:
        """About how much of the checkpoint comes from this rank."""
        parts = [part.to_local() if isinstance(part, DTensor) else part for part in self.class_state.values()]
        names = [] if self.names is None else [self.names]
        return sum(part.nbytes for part in (*parts, *self.backbone.tensors.values(), *self.host_state.values(), *names))


def copy(step: int, engine: Engine, head: Head, run: dict, names: pa.Array | None = None) -> Copy:
    """All ranks call it alike. `run` (JSON) must hold "identity": what `read_run` compares before a resume. names: of
    the identities, in the order of their numbers. Raises UserError on all ranks if they disagree about the class
    state."""
    same_everywhere(head.checksum(), "the class state")
    about = {"step": step, "world_size": world_size(), "zero_stage": engine.zero_stage} | run
    whole = head.host_state() if rank() == 0 else {}
    return Copy(
        step,
        engine.copy(),
        copy_class_state(engine, head),
        {name: np.array(value) for name, value in whole.items()},
        json.dumps(about, indent=1).encode(),
        names if head.rows_of_identities and rank() == 0 else None,
    )


def write(target: Path, copy: Copy, aside: Aside) -> None:
    """Write a checkpoint under the name `target`, from any thread. Raises UserError on all ranks if it could not be
    written on one; then nothing is left of it."""
    writer = Writer(target.with_name(f".{target.name}.unfinished"))
    room = sum(aside.gather(copy.bytes))
    if rank() == 0:
        discard(writer.folder)
        writer.make_folder(writer.folder)
        writer.attempt(lambda: _check_room(writer.folder, room))
    _agree(writer, target, aside)
    copy.backbone.write(writer)
    write_class_state(copy.class_state, writer, aside)
    if rank() == 0:
        with writer.open(writer.folder / "host.npz") as file:
            np.savez(file, **copy.host_state)
        with writer.open(writer.folder / "run.json") as file:
            file.write(copy.run)
        if copy.names is not None:
            with writer.open(writer.folder / IDENTITIES) as file:
                write_names(copy.names, file)
    files = {name: entry for part in aside.gather(writer.files) for name, entry in part.items()}
    _agree(writer, target, aside)
    if rank() == 0:
        writer.seal(files)
        writer.attempt(lambda: _put(writer.folder, target))
    _agree(writer, target, aside)


def write_names(names: pa.Array, where) -> None:
    """A parquet file, whose column `identity` has the names of the identities in the order of their numbers."""
    pq.write_table(pa.table({"identity": names}), where, use_dictionary=False, row_group_size=NAMES)


def discard(folder: Path) -> None:
    """Remove a folder, which first gives up its name: if that is interrupted, no part of it passes for a whole."""
    with suppress(OSError):  # not there, or where nothing can be changed
        shutil.rmtree(_nameless(folder), ignore_errors=True)


def _nameless(folder: Path) -> Path:
    """The same folder, as one that `tidy` removes. Raises OSError."""
    going = folder.with_name(f".{folder.name.lstrip('.')}.discarded")
    shutil.rmtree(going, ignore_errors=True)
    return folder.rename(going)


def _put(folder: Path, target: Path) -> None:
    """Give a whole checkpoint its name; one that had it is there until then. Raises OSError."""
    before = _nameless(target) if target.is_dir() else None
    try:
        folder.rename(target)
    except OSError:
        if before is not None:
            before.rename(target)
        raise
    sync(target.parent)
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _check_room(folder: Path, room: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < room:
        raise OSError(errno.ENOSPC, f"{_gigabytes(room)} are needed and {_gigabytes(free)} are free")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g} GB"


def _agree(writer: Writer, target: Path, aside: Aside) -> None:
    """Raise UserError on all ranks if writing failed on one."""
    trouble = None
    if (error := writer.failure) is not None:
        kind = "disk full" if error.errno in DISK_FULL else "the disk"
        trouble = f"{target} could not be saved: {kind}: {error.strerror}."
    trouble = next((each for each in aside.gather(trouble) if each is not None), None)
    if trouble is not None:
        if rank() == 0:
            discard(writer.folder)
        aside.gather(None)  # nobody is to find it there
        raise shared(trouble)


def read_run(path: Path, identity: dict) -> dict:
    """The run.json of a checkpoint that is about the same model, head and identities. Raises UserError that names what
    is different."""
    run = read_about(path)
    saved = run["identity"]
    different = sorted(key for key in saved.keys() | identity.keys() if saved.get(key) != identity.get(key))
    if different:
        each = (f"{key} is {saved.get(key)} there and {identity.get(key)} here" for key in different)
        raise UserError(f"{path} is of another run: {'; '.join(each)}.")
    return run


def names_from_weights(path: Path) -> list[str]:
    """Parameters of its net that once came from model.weights."""
    return read_about(path).get("from_weights", [])


def read_about(path: Path) -> dict:
    """The run.json of a checkpoint. Raises UserError if it does not say what is in it."""
    try:
        run = read_json(path / "run.json")
    except UserError as error:
        raise UserError(f"{path} is no complete checkpoint: {error}") from None
    kinds = {"step": int, "identity": dict}
    if not isinstance(run, dict) or any(type(run.get(key)) is not kind for key, kind in kinds.items()):
        raise UserError(f"{path} is no complete checkpoint: run.json does not say what is in it. Choose another one.")
    return run


def load(path: Path, engine: Engine, head: Head) -> None:
    """Take over a checkpoint that has been verified. Raises UserError on all ranks if a part does not fit."""
    engine.load(path)
    load_class_state(engine, head, path)
    head.load_host_state(together(lambda: read_host_state(path)))
    for follower in engine.followers:
        follower.refresh()


def read_host_state(path: Path) -> dict[str, np.ndarray]:
    """host.npz of a checkpoint. Raises UserError if it cannot be read, or holds more than data."""
    try:
        with np.load(path / "host.npz", allow_pickle=False) as host:
            return dict(host)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}/host.npz cannot be loaded: {error}.") from error
