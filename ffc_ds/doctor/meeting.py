"""What the ranks tell each other beside the collectives, which may be what is broken, and an end to waiting."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ffc_ds.distributed import rank, world_size
from ffc_ds.launching import GRACE, leave

TOLD, LIVES, LEAVES = (f"ffc_ds/doctor/{{}}/{state}/{{}}" for state in ("told", "lives", "leaves"))
PAUSE = 0.02  # seconds


class Meeting:
    """Of all ranks, in the store of the rendezvous. After `init_distributed`."""

    def __init__(self):
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._stores = [  # the clock has a connection of its own
            dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False) for _ in "ab"
        ]

    def hear(self, topic: str, told: Any) -> list:
        """What all ranks tell (JSON), in rank order, once all have."""
        store = self._stores[0]
        store.set(TOLD.format(topic, rank()), json.dumps(told))
        everyones = _keys(TOLD, topic)
        while not store.check(everyones):
            time.sleep(PAUSE)
        return [json.loads(each) for each in store.multi_get(everyones)]

    def part(self) -> None:
        """The end: rank 0, which keeps the store, stays until the others need it no more, or is tired of waiting."""
        store, deadline = self._stores[0], time.monotonic() + GRACE
        store.set(LEAVES.format("all", rank()), "")
        while rank() == 0 and not store.check(_keys(LEAVES, "all")) and time.monotonic() < deadline:
            time.sleep(PAUSE)

    @contextmanager
    def within(self, seconds: float, topic: str, give_up: Callable[[str], None]) -> Iterator[None]:
        """Leave with exit code 2, on every rank, if what is inside is not over by then. Before that, rank 0 calls
        `give_up` with what is known of the reason."""
        over = threading.Event()

        def watch() -> None:
            if over.wait(seconds):
                return
            store = self._stores[1]
            with suppress(dist.DistError):  # rank 0 is gone
                store.set(LIVES.format(topic, rank()), "")
            time.sleep(GRACE / 2)
            if rank() == 0:
                give_up(f"not over within {seconds:g} s: {self._reason(store, topic)}")
            else:
                time.sleep(GRACE)  # unless rank 0 is the one that does not come
                print(f"error: rank {rank()} on {socket.gethostname()} waited in vain for rank 0", file=sys.stderr)
            leave(2)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _reason(self, store: dist.Store, topic: str) -> str:
        if silent := self._absent(store, LIVES, topic):
            return f"{_names(silent)} gave no sign of life, so it is stopped, or its host is gone"
        waited_for = self._absent(store, TOLD, topic)
        if len(waited_for) == world_size():
            return "all ranks live and wait for each other"
        return f"{_names(waited_for)} lives, but did not finish"

    def _absent(self, store: dist.Store, kind: str, topic: str) -> list[int]:
        return [each for each, key in enumerate(_keys(kind, topic)) if not store.check([key])]


def _keys(kind: str, topic: str) -> list[str]:
    return [kind.format(topic, each) for each in range(world_size())]


def _names(ranks: list[int]) -> str:
    return "rank " + ", ".join(map(str, ranks))
