"""Save, find, verify and resume: a checkpoint is a folder step-N that exists only when it is complete.

    step-N/engine/     DeepSpeed's own: weights and optimizer state of the probe net
    step-N/class/      torch.distributed.checkpoint: the sharded class state, the nets that follow, for any rank count
    step-N/host.npz    class state that is the same on all ranks, such as the index of the pool
    step-N/run.json    where the run stood, and what model and head it is about

There is no state of random generators: every random choice is a function of seed, step and rank.
"""

import json
import shutil
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from ffc_ds.config.documents import read_json
from ffc_ds.distributed import barrier, rank, same_everywhere, together, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.base import Head
from ffc_ds.training.engine import Engine
from ffc_ds.training.follower import Follower


def save(folder: Path, step: int, engine: Engine, head: Head, run: dict, keep: int) -> None:
    """Write folder/step-N. It is written aside and renamed when every rank is done; then old ones beyond `keep` go.

    `run` (JSON) must hold "identity": what `verify` compares before a resume.
    """
    same_everywhere(head.checksum(), "the class state")
    target, aside = folder / f"step-{step}", folder / f".step-{step}.unfinished"
    if rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    engine.save(aside)
    dcp.save(_class_state(engine, head), checkpoint_id=str(aside / "class"))
    barrier()
    if rank() == 0:
        np.savez(aside / "host.npz", **head.host_state())
        files = {str(file.relative_to(aside)): file.stat().st_size for file in aside.rglob("*") if file.is_file()}
        about = {"step": step, "world_size": world_size(), "zero_stage": engine.zero_stage, "files": files}
        about |= run
        (aside / "run.json").write_text(json.dumps(about, indent=1))
    barrier()
    if rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        for number, old in _complete(folder)[:-keep]:
            if number != step:
                shutil.rmtree(old)
    barrier()


def find(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint that `resume` names: "latest" in `folder`, "auto" (the same, or none), or a path.

    Raises UserError if there is none, or if a run without `resume` would overwrite those in `folder`.
    """
    if resume is None and _complete(folder):
        raise UserError(f"{folder} holds checkpoints of an earlier run: --resume latest, or another --output_dir.")
    if resume is None or (resume == "auto" and not _complete(folder)):
        return None
    if resume in ("latest", "auto"):
        complete = _complete(folder)
        if not complete:
            raise UserError(f"--resume latest: there is no checkpoint in {folder}. Leave --resume out to start anew.")
        return complete[-1][1]
    path = Path(resume)
    if not path.is_dir():
        raise UserError(f"--resume {resume}: there is no such folder. It must be a step-N folder of a run, or latest.")
    return path


def set_newer_aside(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints in `folder` beyond `step`, because the run goes on from there: `latest` must not mean what
    it leaves behind. Rank 0 only. Returns their new names."""
    moved = []
    for number, newer in _complete(folder):
        if number > step:
            target = folder / f"left-{newer.name}"
            shutil.rmtree(target, ignore_errors=True)
            moved.append(newer.rename(target))
    return moved


def verify(path: Path, identity: dict, zero_stage: int) -> dict:
    """The run.json of a complete checkpoint that is about the same model, head and identities. Raises UserError that
    names what is missing or different."""
    run = _read_run(path)
    for name, size in run["files"].items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise UserError(f"{path} is no complete checkpoint: {name} is missing or cut off. Choose another one.")
    for key in run["identity"].keys() | identity.keys():
        saved, wanted = run["identity"].get(key), identity.get(key)
        if saved != wanted:
            raise UserError(f"{path} is of another run: {key} is {saved} there and {wanted} here.")
    there, here = (run["zero_stage"], run["world_size"]), (zero_stage, world_size())
    if there != here and (there[0] or here[0]):
        raise UserError(
            f"{path} was written under ZeRO {there[0]} by {there[1]} ranks and cannot go on under ZeRO {here[0]} with "
            f"{here[1]}: DeepSpeed's optimizer state is cut for the former. Use the same ranks and ds_config."
        )
    return run


def _read_run(path: Path) -> dict:
    try:
        run = read_json(path / "run.json")
    except UserError as error:
        raise UserError(f"{path} is no complete checkpoint: {error}") from None
    kinds = {"step": int, "world_size": int, "zero_stage": int, "files": dict, "identity": dict}
    if not isinstance(run, dict) or any(type(run.get(key)) is not kind for key, kind in kinds.items()):
        raise UserError(f"{path} is no complete checkpoint: run.json does not say what is in it. Choose another one.")
    return run


def load(path: Path, engine: Engine, head: Head) -> None:
    """Take over a verified checkpoint. Raises UserError on all ranks if a part does not fit."""
    together(lambda: engine.load(path))
    state = _class_state(engine, head)
    together(lambda: _load_class_state(path, state))
    head.load_host_state(together(lambda: _read_host_state(path)))
    for follower in engine.followers:
        follower.refresh()


def _read_host_state(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path / "host.npz", allow_pickle=False) as host:
            return dict(host)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}/host.npz cannot be loaded: {error}.") from error


def _load_class_state(path: Path, state: dict) -> None:
    try:
        dcp.load(state, checkpoint_id=str(path / "class"))
    except (RuntimeError, ValueError, OSError, dcp.CheckpointException) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"{path}/class cannot be loaded: {reason[-1] if reason else error!r}.") from error


def _complete(folder: Path) -> list[tuple[int, Path]]:
    named = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return sorted((int(number), path) for number, path in named if number.isdigit())


def _class_state(engine: Engine, head: Head) -> dict[str, torch.Tensor]:
    """Views of this rank's class state, saved from and loaded into in place."""
    state = {f"head.{name}": _sharded(shard.local, shard.dim, shard.length) for name, shard in head.shards().items()}
    for follower in engine.followers:
        state |= _follower_state(follower, engine.zero_stage)
    return state


def _follower_state(follower: Follower, zero_stage: int) -> dict[str, torch.Tensor]:
    """Parameters flat, so that a shard of ZeRO-3 and a whole tensor are the same thing to the checkpoint."""
    state = {}
    lengths = {f"average.{name}": getattr(p, "ds_numel", p.numel()) for name, p in follower.module.named_parameters()}
    for name, value in follower.state().items():
        if zero_stage == 3 and name in lengths:
            size = len(value)
            own = max(0, min(size, lengths[name] - rank() * size))  # ZeRO-3 pads the last shards
            value = _sharded(value[:own], 0, lengths[name])
        state[f"{follower.name}.{name}"] = value
    return state


def _sharded(local: torch.Tensor, dim: int, length: int) -> DTensor:
    # On a mesh of another device it would be a copy: class state may lie in host memory.
    mesh = init_device_mesh(local.device.type, (world_size(),))
    shape = list(local.shape)
    shape[dim] = length
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(dim)], run_check=False, shape=torch.Size(shape), stride=stride)
