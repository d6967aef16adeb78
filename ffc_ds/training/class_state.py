"""The class state and the nets that follow through torch.distributed.checkpoint, which cuts them for other ranks."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor

from ffc_ds.distributed import Aside, rank, to_host, together, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.base import Head, Shard
from ffc_ds.training.engine import Engine
from ffc_ds.training.follower import Follower
from ffc_ds.training.manifest import Writer
from ffc_ds.training.state_files import ShardReader, ShardWriter


def copy_class_state(engine: Engine, head: Head) -> dict[str, torch.Tensor]:
    """In host memory what this rank writes: its shards, and its turns of what all ranks have whole."""
    kept = {}
    for number, (name, tensor) in enumerate(_class_state(engine, head).items()):
        if isinstance(tensor, DTensor):
            (placement,) = tensor.placements
            kept[name] = Shard(to_host(tensor.to_local()), placement.dim, tensor.shape[placement.dim]).tensor()
        elif number % world_size() == rank():
            kept[name] = to_host(tensor)
    return kept


def write_class_state(copy: dict[str, torch.Tensor], writer: Writer, aside: Aside) -> None:
    """Write class/ in the folder of `writer`, every rank what it has copied."""
    dcp.save(copy, storage_writer=ShardWriter(writer.folder / "class", writer), process_group=aside.group)


def load_class_state(engine: Engine, head: Head, folder: Path) -> None:
    """Take over folder/class. Raises UserError on all ranks if it does not fit or holds more than data."""
    state, reader = _class_state(engine, head), ShardReader(folder / "class")
    # Each on all ranks: the library would say at length what it makes of an index that is refused.
    for action in (reader.read_metadata, lambda: dcp.load(state, storage_reader=reader)):
        together(lambda action=action: _try(action, folder / "class"))


def _try(action: Callable, path: Path) -> None:
    try:
        action()
    except (RuntimeError, ValueError, OSError, EOFError, UnpicklingError, dcp.CheckpointException) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"{path} cannot be loaded: {reason[-1] if reason else repr(error)}.") from error


def _class_state(engine: Engine, head: Head) -> dict[str, torch.Tensor]:
    """Views of this rank's class state, copied from and loaded into in place."""
    state = {f"head.{name}": shard.tensor() for name, shard in head.shards().items()}
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
            value = Shard(value[:own], 0, lengths[name]).tensor()
        state[f"{follower.name}.{name}"] = value
    return state
