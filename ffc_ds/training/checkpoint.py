"""Save and load one checkpoint: a folder step-N that has this name only when it is complete and on the disk.

    step-N/backbone/       safetensors: weights and optimizer state of the probe net, in fp32, for any ranks
    step-N/class/          torch.distributed.checkpoint: the sharded class state, the nets that follow, for any ranks
    step-N/host.npz        class state that is the same on all ranks, such as the index of the pool
    step-N/run.json        where the run stood, and what model and head it is about
    step-N/manifest.json   size and checksum of every other file

There is no state of random generators: every random choice is a function of seed, step and rank. A checkpoint is data:
nothing in it is run when it is loaded, whoever made it.
"""

import errno
import json
import shutil
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch.distributed as dist

from ffc_ds.config.documents import read_json
from ffc_ds.distributed import active, barrier, rank, same_everywhere, together, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.base import Head
from ffc_ds.training.class_state import load_class_state, save_class_state
from ffc_ds.training.engine import Engine
from ffc_ds.training.manifest import Writer

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def save(target: Path, step: int, engine: Engine, head: Head, run: dict, room: int = 0) -> int:
    """Write a checkpoint under the name `target`. Returns its size in bytes.

    `run` (JSON) must hold "identity": what `read_run` compares before a resume. room: bytes that must be free. Raises
    UserError on all ranks if it could not be written on one; then nothing is left of it.
    """
    same_everywhere(head.checksum(), "the class state")
    writer = Writer(target.with_name(f".{target.name}.unfinished"))
    if rank() == 0:
        discard(writer.folder)
        writer.make_folder(writer.folder)
        writer.attempt(lambda: _check_room(writer.folder, room))
    _agree(writer, target)
    engine.save(writer)
    save_class_state(engine, head, writer)
    if rank() == 0:
        with writer.open(writer.folder / "host.npz") as file:
            np.savez(file, **head.host_state())
        about = {"step": step, "world_size": world_size(), "zero_stage": engine.zero_stage} | run
        with writer.open(writer.folder / "run.json") as file:
            file.write(json.dumps(about, indent=1).encode())
    files = _files_of_all(writer)
    _agree(writer, target)
    if rank() == 0:
        discard(target)
        writer.seal(files, target)
    _agree(writer, target)
    return sum(size for size, _ in files.values())


def discard(folder: Path) -> None:
    """Remove a folder, which first gives up its name: if that is interrupted, no part of it passes for a whole."""
    going = folder.with_name(f".{folder.name.lstrip('.')}.discarded")
    shutil.rmtree(going, ignore_errors=True)
    try:
        folder.rename(going)
    except OSError:
        return  # not there, or where nothing can be changed
    shutil.rmtree(going, ignore_errors=True)


def _check_room(folder: Path, room: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < room:
        raise OSError(errno.ENOSPC, f"{_gigabytes(room)} are needed and {_gigabytes(free)} are free")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g} GB"


def _files_of_all(writer: Writer) -> dict[str, list]:
    parts = [writer.files] * world_size()
    if active():
        dist.all_gather_object(parts, writer.files)
    files = {name: entry for part in parts for name, entry in part.items()}
    if rank() == 0:  # what DeepSpeed copies from elsewhere, such as its memory on NVMe
        names = (path.relative_to(writer.folder).as_posix() for path in writer.folder.rglob("*") if path.is_file())
        for name in sorted(set(names) - files.keys()):
            writer.take(writer.folder / name)
            files[name] = writer.files[name]
    return files


def _agree(writer: Writer, target: Path) -> None:
    """Raise UserError on all ranks if writing failed on one."""

    def succeed():
        if (error := writer.failure) is not None:
            kind = "disk full" if error.errno in DISK_FULL else "the disk"
            raise UserError(f"{target} could not be saved: {kind}: {error.strerror}.")

    try:
        together(succeed)
    except UserError:
        if rank() == 0:
            discard(writer.folder)
        barrier()
        raise


def read_run(path: Path, identity: dict) -> dict:
    """The run.json of a checkpoint that is about the same model, head and identities. Raises UserError that names what
    is different."""
    run = _read_run(path)
    for key in run["identity"].keys() | identity.keys():
        saved, wanted = run["identity"].get(key), identity.get(key)
        if saved != wanted:
            raise UserError(f"{path} is of another run: {key} is {saved} there and {wanted} here.")
    return run


def _read_run(path: Path) -> dict:
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
    head.load_host_state(together(lambda: _read_host_state(path)))
    for follower in engine.followers:
        follower.refresh()


def _read_host_state(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path / "host.npz", allow_pickle=False) as host:
            return dict(host)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}/host.npz cannot be loaded: {error}.") from error
