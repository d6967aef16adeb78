"""All ranks must see one output folder, to which all of them write."""

import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from ffc_ds.distributed import barrier, broadcast_object, rank, together, world_size
from ffc_ds.errors import UserError, shared

PATIENCE = 15.0  # seconds; a network file system may remember for as long what was not there


def open_shared(folder: Path) -> None:
    """Make `folder` if need be. Raises UserError on all ranks if it cannot be written to, or if what the first rank
    writes there does not show on all others: then some hosts have a folder of their own under this name."""
    token = broadcast_object(f".seen-{secrets.token_hex(8)}")
    together(lambda: _leave(folder, token) if rank() == 0 else None)
    if world_size() > 1:
        _check_seen(folder, token)
        barrier()
    if rank() == 0:
        (folder / token).unlink(missing_ok=True)


def _leave(folder: Path, token: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".seen-*"):
            old.unlink(missing_ok=True)
        (folder / token).touch()
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written to: {error.strerror}.") from None


def _check_seen(folder: Path, token: str) -> None:
    found = [None] * world_size()
    dist.all_gather_object(found, (socket.gethostname(), _appears(folder, token)))
    blind = [f"{host} (rank {number})" for number, (host, seen) in enumerate(found) if not seen]
    if blind:
        if rank() == 0:
            (folder / token).unlink(missing_ok=True)
        raise shared(
            f"output_dir {folder} is not one folder for all ranks: what {found[0][0]} (rank 0) wrote there is not seen "
            f"by {', '.join(blind)}. Give the full path of a folder that all hosts share: all ranks write there."
        )


def _appears(folder: Path, token: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            if token in os.listdir(folder):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
