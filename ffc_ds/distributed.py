"""Collectives with gradients, shard bounds, and errors that every rank shares; all of it works alone too."""

import datetime
import os
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ffc_ds.errors import UserError, shared

# torch 2.13 renamed it
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
TIMEOUT = datetime.timedelta(hours=2)  # a run of training brings its own

_entered = 0


def entered() -> int:
    """How many of the collectives below this rank has come to. A rank that others wait for has come to fewer."""
    return _entered


def _enter() -> None:
    global _entered
    _entered += 1


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def host_share() -> float:
    """The share of all ranks that are on this host, as the launcher says it; all of them where it says nothing."""
    here = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or world_size()  # DeepSpeed's, torchrun's
    return int(here) / world_size()


def this_host() -> str:
    """Another one on each host, the same in all its containers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def shard_bounds(length: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row and end row of the part of `length` rows that `rank` owns.

    Parts are those of `torch.chunk` and of `Shard` in torch's DTensor: ceil(length / world_size) rows each, the last
    ones shorter or empty. Keeping to them lets `torch.distributed.checkpoint` reshard class state on its own.
    """
    size = -(-length // world_size)
    return min(rank * size, length), min((rank + 1) * size, length)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A host array on the device, without making the host wait for the device."""
    tensor = torch.from_numpy(np.array(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, which nothing that is done to the tensor later changes."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def where_ranks_meet(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, on this rank's GPU where collectives take no other."""
    return tensor.cuda() if active() and dist.get_backend() == "nccl" else tensor


def join_launcher() -> torch.device:
    """Join the other processes of the launcher, if one started this process. Returns the device to compute on."""
    if "RANK" in os.environ:
        from ffc_ds.training.process_group import (
            init_distributed,  # takes seconds, and a process alone does not need it
        )

        return init_distributed()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM) -> torch.Tensor:
    """In-place reduction over all ranks, without gradient."""
    _enter()
    if world_size() > 1:
        dist.all_reduce(tensor, op=op)
    return tensor


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """[...] of every rank, joined in rank order as [world_size, ...], without gradient."""
    _enter()
    if world_size() == 1:
        return tensor.unsqueeze(0)
    gathered = tensor.new_empty(world_size() * tensor.numel())
    _gather_into(gathered, tensor.flatten())
    return gathered.view(world_size(), *tensor.shape)


class _GatherViews(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local):
        return all_gather(local).transpose(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx, grad):
        # Each rank holds the gradient of its own columns of the logits; the sum over ranks is the gradient of the
        # global loss. DeepSpeed will average over ranks what is a sum of parts, hence the factor world_size.
        views, rows, dim = grad.shape
        world = world_size()
        summed = all_reduce(grad.clone(memory_format=torch.contiguous_format))
        own = summed.view(views, world, rows // world, dim)[:, rank()]
        return own * world


def gather_views(local: torch.Tensor) -> torch.Tensor:
    """Features of every rank in rank order: [views, r, D] of this rank -> [views, world_size * r, D] of all ranks.

    Differentiable: a loss that every rank computes from its own part of the classes has, after DeepSpeed's mean over
    ranks, the gradient of the whole loss.
    """
    if world_size() == 1:
        return local
    return _GatherViews.apply(local)


def barrier() -> None:
    _enter()
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value, source: int = 0):
    """The value that rank `source` holds, on every rank."""
    _enter()
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def together(action):
    """Run `action` on every rank; a `UserError` on any rank becomes the same `UserError` on all of them."""
    result, message = None, None
    try:
        result = action()
    except UserError as error:
        message = str(error)
    _enter()
    if world_size() > 1:
        messages = [None] * world_size()
        dist.all_gather_object(messages, message)
        message = next((text for text in messages if text is not None), None)
    if message is not None:
        raise shared(message)
    return result


def first_on_host() -> bool:
    """Whether this is the one rank of its host that does what needs to be done once there."""
    return not active() or dist.get_node_local_rank(fallback_rank=rank()) == 0


def first_rank_first(action):
    """Like `together`, with one rank of each host ahead of the others, so that they find its caches ready."""
    leads = first_on_host()
    ahead = together(lambda: action() if leads else None)
    behind = together(lambda: None if leads else action())
    return ahead if leads else behind


def check_same(own: dict[str, Any], remedy: str) -> None:
    """Raise UserError on all ranks if a value is not that of rank 0."""
    wanted = broadcast_object(own)

    def check() -> None:
        for key in sorted(wanted.keys() | own.keys()):
            if own.get(key) != wanted.get(key):
                raise UserError(f"{key} is {own.get(key)} on rank {rank()} and {wanted.get(key)} on rank 0: {remedy}.")

    together(check)


def same_everywhere(digest: int, what: str) -> None:
    """Raise UserError on all ranks, naming those that differ, unless `digest` is the same number on all of them."""
    if world_size() == 1:
        return
    _enter()
    digests = [None] * world_size()
    dist.all_gather_object(digests, int(digest))
    usual, count = Counter(digests).most_common(1)[0]
    if count < world_size():
        others = ", ".join(str(number) for number, each in enumerate(digests) if each != usual)
        raise shared(
            f"the ranks disagree about {what}: rank {others} against the others. Memory or a link is at fault, or a "
            "defect: the run cannot be trusted further, and goes on from its last checkpoint with --resume latest."
        )


class Aside:
    """A group of all ranks for a thread that runs beside training: what it sends does not get between the collectives
    of the steps, and does not count as one that others wait for. All ranks make it alike."""

    def __init__(self, timeout: datetime.timedelta = TIMEOUT):
        self.group = dist.new_group(backend="gloo", timeout=timeout) if active() else None

    def gather(self, value) -> list:
        """What each rank brings, in rank order."""
        values = [value] * world_size()
        if active():
            dist.all_gather_object(values, value, self.group)
        return values
