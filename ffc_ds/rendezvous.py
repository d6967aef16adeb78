"""How the ranks of a run find each other, and not those of another run.

Rank 0 listens at MASTER_ADDR:MASTER_PORT. Where another run does so already, the ranks of this one would join that one
and spoil both. So each rank says first which run it is of, and that it is the only one of its number.
"""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from ffc_ds.errors import UserError
from ffc_ds.interface import address_towards, choose_interface
from ffc_ds.launching import GRACE
from ffc_ds.progress import waiting

PATIENCE = 600.0  # seconds for all ranks to start
ANSWER = 30.0  # seconds for rank 0 to answer once it listens
RUN, RANK = "ffc_ds/run", "ffc_ds/rank/{}"
ELSEWHERE, FROM_RANK_0 = "ffc_ds/elsewhere", "ffc_ds/elsewhere/from_rank_0"  # a host that is not that of rank 0
OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
REMEDY = (
    "start them with deepspeed, or set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE (ranks on its host), MASTER_ADDR and "
    "MASTER_PORT for each."
)


def meet() -> dist.Store | None:
    """Wait until all ranks of the launcher are there; a process without a launcher is alone.

    Sets MASTER_ADDR, MASTER_PORT and, for several hosts, GLOO_SOCKET_IFNAME to what `torch.distributed` shall use,
    while the result is kept. Raises UserError where the port is another run's, where a rank does not come, and where
    the environment says too little.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None  # torchrun has brought them together
    if "RANK" not in os.environ:
        if several := [name for name in OTHER_LAUNCHERS if int(os.environ.get(name, 1)) > 1]:
            raise UserError(
                f"{several[0]} says that there are several processes, but not which rank each of them is: {REMEDY}"
            )
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if world == 1:  # nobody else has to know the port: any will do
        store = _listen(0)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        return store
    host, port = _given("MASTER_ADDR"), _number("MASTER_PORT")
    run = json.dumps([world, [each for each in sys.argv[1:] if not each.startswith("--local_rank")]])
    if rank == 0:
        store = _listen(port)
        store.set(RUN, run)
        with waiting(f"waiting at {host}:{port} for all {world} ranks"):
            _wait_for_all(store, world)
    else:
        _wait_for_rank_0(host, port)
        store = _answer(host, port, rank, run)
        if store is None:
            time.sleep(GRACE)  # rank 0 of this run could not listen, and says so better
            raise UserError(
                f"{host}:{port} answers, but not for this run: another run may use the port (--master_port gives this "
                "one its own), or rank 0 was started with other arguments."
            )
    if int(os.environ.get("LOCAL_SIZE") or world) < world and (other := _other_host(store, host, rank)):
        choose_interface(other)
    return store


def _given(name: str) -> str:
    if not os.environ.get(name):
        raise UserError(f"RANK is set, but {name} is not: {REMEDY}")
    return os.environ[name]


def _number(name: str) -> int:
    if not _given(name).isdecimal():
        raise UserError(f"{name} is {os.environ[name]!r}, which is no number: {REMEDY}")
    return int(os.environ[name])


def _listen(port: int) -> dist.TCPStore:
    try:
        return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except dist.DistError as error:
        reason = "another run may use it" if "EADDRINUSE" in str(error) else str(error).partition("\n")[0]
        raise UserError(
            f"port {port}, where the ranks are to meet, cannot be used ({reason}): choose another one, "
            f"deepspeed --master_port {port + 1} launch/..."
        ) from None


def _wait_for_all(store: dist.TCPStore, world: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while missing := [rank for rank in range(1, world) if not store.check([RANK.format(rank)])]:
        if time.monotonic() > deadline:
            raise UserError(
                f"of {world} ranks {len(missing)} did not start within {PATIENCE / 60:.0f} minutes, rank {missing[0]} "
                "first: look at their hosts, and whether these reach MASTER_ADDR."
            )
        time.sleep(0.1)


def _wait_for_rank_0(host: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, port), timeout=10).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"rank 0 is not at {host}:{port} ({error}): did it start, is MASTER_ADDR its host, and does no "
                    "firewall stand in between?"
                ) from None
        time.sleep(0.1)


def _answer(host: str, port: int, rank: int, run: str) -> dist.TCPStore | None:
    """The connection to rank 0, unless what listens there is another run's or another program's."""
    found = []

    def ask() -> None:
        with suppress(dist.DistError):
            store = dist.TCPStore(host, port, timeout=timedelta(seconds=ANSWER), wait_for_workers=False)
            if store.get(RUN).decode() != run:
                return
            if address := address_towards(host):
                store.set(ELSEWHERE, address)
            if store.add(RANK.format(rank), 1) == 1:
                found.append(store)

    thread = threading.Thread(target=ask, daemon=True)  # torch itself waits for ever for a server that is silent
    thread.start()
    thread.join(ANSWER)
    return found[0] if found else None


def _other_host(store: dist.TCPStore, master: str, rank: int) -> str:
    """Name or address of a host of the run that is not this one, or nothing if no such host is seen.

    To the ranks beside rank 0, the name of their own host says nothing of the way to others: they are told an address.
    """
    if rank == 0:
        store.set(FROM_RANK_0, store.get(ELSEWHERE) if store.check([ELSEWHERE]) else b"")
    elif address_towards(master):
        return master
    store.wait([FROM_RANK_0], timedelta(seconds=PATIENCE))
    return store.get(FROM_RANK_0).decode()
