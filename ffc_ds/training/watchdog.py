"""When a rank does not come: time limits, and who it was that kept the others waiting.

Each rank says through the store of the rendezvous, every PAUSE seconds, that it lives and where it is. Where rank 0 has
not come on in time, nobody has; it then looks who lives and who has come to the fewest collectives, and all read that
verdict and leave. If rank 0 itself does not answer, each of the others knows that alone.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta

import psutil
import torch.distributed as dist

from ffc_ds.config.settings import TrainConfig
from ffc_ds.distributed import entered, rank, world_size
from ffc_ds.launching import GRACE, ending, leave

PAUSE = 2.0  # seconds between two signs of life
MARGIN = 12.0  # seconds from the limit to the verdict, if rank 0 lives
SIGN, VERDICT = "ffc_ds/sign/{}", "ffc_ds/verdict"
SHOWN = 8  # ranks in a message


def patience(train: TrainConfig) -> timedelta:
    """How long collectives wait: longer than the watchdog, which knows more."""
    return timedelta(minutes=max(train.open_timeout, train.step_timeout) + 5)


class Watchdog:
    """Ends this process, and with it the run, when it stays at one place for longer than the limit: from now on until
    the end of a `with`, from which an error is told to the other ranks."""

    def __init__(self, train: TrainConfig):
        self._limits = {"open_timeout": 60 * train.open_timeout, "step_timeout": 60 * train.step_timeout}
        self._at = "opening the data", time.monotonic(), "open_timeout"
        self._host, self._rank, self._signs = socket.gethostname(), rank(), 0
        self._started, self._answered = psutil.Process().create_time(), time.monotonic()
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False)
        self._give_sign()  # at once: who is stopped early is to be known by its process, too
        for watch in (self._talk, self._look_at_the_clock):
            threading.Thread(target=watch, daemon=True).start()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, kind, error, *_) -> None:
        ending.set()
        if error is not None:
            self.tell(error)

    def tell(self, error: BaseException) -> None:
        """This rank ends of an error, which ranks on other hosts would not see."""
        if not getattr(error, "shared", False):
            with suppress(dist.DistError):  # for hosts where no launcher sees it
                reason = " ".join(str(error).split()) or repr(error)
                self._judge(f"rank {self._rank} on {self._host} has ended: {reason:.1000}", said_on=self._host)

    def at(self, place: str) -> None:
        """This rank has come to a place, for which the limit of a step holds."""
        self._at = place, time.monotonic(), "step_timeout"

    def passing(self, items: Iterable, place: str) -> Iterator:
        """The same items; each is a place."""
        for number, item in enumerate(items, 1):
            self.at(f"{place}, batch {number}")
            yield item

    def _late(self) -> float:
        """Seconds since the limit was passed."""
        _, since, limit = self._at
        return time.monotonic() - since - self._limits[limit]

    def _look_at_the_clock(self) -> None:
        """For when the store, which rank 0 keeps, does not answer: a call to it may never return."""
        while not ending.wait(PAUSE / 4):
            # If it answers, its verdict is on the way: it may have come to this place later.
            if self._late() > (MARGIN if time.monotonic() - self._answered > MARGIN else 2 * MARGIN):
                said = f"{self._overdue()} Rank 0 does not answer: it is stopped, or its host is gone."
                self._end(said, speaks=_first_here() or self._rank == 1)

    def _talk(self) -> None:
        while not ending.wait(PAUSE):
            try:
                self._give_sign()
                if self._rank == 0 and self._late() > 0 and not self._store.check([VERDICT]):
                    self._find_out()
                there = self._store.check([VERDICT])
                self._answered = time.monotonic()
                if there:
                    self._obey(json.loads(self._store.get(VERDICT)))
            except dist.DistError:
                if not ending.wait(2 * PAUSE):
                    self._end(f"rank 0 has ended while rank {self._rank} was at {self._at[0]}.", _first_here())

    def _give_sign(self) -> None:
        self._signs += 1
        stopped = _stopped_children() if self._late() > -PAUSE else []
        sign = {"place": self._at[0], "entered": entered(), "signs": self._signs, "stopped": stopped}
        sign |= {"host": self._host, "pid": os.getpid(), "started": self._started}
        self._store.set(SIGN.format(self._rank), json.dumps(sign))

    def _read(self) -> dict[int, dict]:
        signs = {each: SIGN.format(each) for each in range(world_size())}
        return {each: json.loads(self._store.get(key)) for each, key in signs.items() if self._store.check([key])}

    def _find_out(self) -> None:
        place, before = self._at[0], self._read()
        if ending.wait(2.5 * PAUSE) or self._at[0] != place:
            return
        self._give_sign()
        now = self._read()
        silent = {each: sign for each, sign in now.items() if sign == before.get(each)}
        speakers = {now[each]["host"]: each for each in sorted(now.keys() - silent.keys(), reverse=True)}
        self._judge(f"{self._overdue()} {_who_did_not_come(now, silent)}", silent, speakers)

    def _overdue(self) -> str:
        place, _, limit = self._at
        return f"{place} did not end within {self._limits[limit] / 60:g} minutes (train.{limit})."

    def _judge(self, text: str, silent: dict | None = None, speakers: dict | None = None, said_on: str = "") -> None:
        gone = [[sign["host"], sign["pid"], sign["started"]] for sign in (silent or {}).values()]
        self._store.set(VERDICT, json.dumps({"text": text, "gone": gone, "speakers": speakers, "said_on": said_on}))

    def _obey(self, verdict: dict) -> None:
        for host, pid, started in verdict["gone"]:
            if host == self._host:
                _kill(pid, started)
        if verdict["speakers"] is None:
            said_here = verdict["said_on"] == self._host
            self._end(verdict["text"], _first_here() and not said_here, PAUSE + GRACE * said_here)
        self._end(verdict["text"], verdict["speakers"].get(self._host) == self._rank)

    def _end(self, text: str, speaks: bool, wait: float = PAUSE) -> None:
        if speaks:
            print(f"\nerror: {self._host}: {text} All ranks end.\n", file=sys.stderr, flush=True)
        else:
            time.sleep(wait)  # the launcher ends all when the first one leaves, also who has yet to say why
        leave(1)


def _who_did_not_come(signs: dict[int, dict], silent: dict[int, dict]) -> str:
    unseen = [f"rank {each}" for each in range(world_size()) if each not in signs]
    if silent or unseen:
        names = unseen + [_name(*each) for each in silent.items()]
        return f"{_some(names)} did not come: no sign of life, so it is stopped, or its host is gone."
    fewest = min(sign["entered"] for sign in signs.values())
    behind = {each: sign for each, sign in signs.items() if sign["entered"] == fewest}
    places = [f"{_name(*each)}, which is at {_place(each[1])}" for each in behind.items()]
    if len(behind) < len(signs) or len(signs) == 1:
        return f"{_some(places)}, did not come."
    return f"All live, but do not meet: {_some(places)}."


def _name(number: int, sign: dict) -> str:
    return f"rank {number} (process {sign['pid']} on {sign['host']})"


def _place(sign: dict) -> str:
    stopped = "".join(f" (its data worker {pid} is stopped)" for pid in sign["stopped"])
    return f"{sign['place']}{stopped}"


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


def _first_here() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _stopped_children() -> list[int]:
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process().children() if child.status() == psutil.STATUS_STOPPED]
    return []


def _kill(pid: int, started: float) -> None:
    """A rank that is stopped cannot leave by itself, and holds a GPU."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 2:
            process.send_signal(signal.SIGKILL)
