"""How far a long job is: a bar in a terminal, elsewhere a line now and then."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


def progress(
    iterable: Iterable | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
    shown: bool = True,
) -> "tqdm | _Lines":
    """A tqdm in a terminal; in the log of a job the same as lines on stderr, of which a job of seconds has none.

    desc: what is done. unit: what is counted, plural. leave: a finished bar stays in sight.
    """
    if shown and not sys.stderr.isatty():
        return _Lines(iterable, desc, unit, len(iterable) if total is None else total, initial)
    return tqdm(iterable, desc, total, leave, initial=initial, unit=f" {unit}", disable=not shown, dynamic_ncols=True)


def say(text: str) -> None:
    """Print a line, without disturbing a bar, and at once, lest processes write into each other's lines."""
    with suppress(OSError):  # a log on a disk that is full
        tqdm.write(f"{text}\n", end="")
        sys.stdout.flush()


@cache
def say_once(line: str) -> None:
    """Say something on rank 0, however often it comes up."""
    if os.environ.get("RANK", "0") == "0":
        say(line)


@contextmanager
def waiting(text: str, first: float = EVERY, shown: bool = True) -> Iterator[None]:
    """Say what is waited for, after `first` seconds and then every EVERY, while that cannot say how far it is."""
    over, begin = threading.Event(), time.monotonic()

    def speak() -> None:
        pause = first
        while not over.wait(pause):
            say(f"{text}, {_duration(time.monotonic() - begin)} so far")
            pause = EVERY

    if shown:
        threading.Thread(target=speak, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Lines:
    """What is used of tqdm."""

    def __init__(self, iterable: Iterable | None, desc: str, unit: str, total: int, initial: int):
        self._iterable, self._desc, self._unit, self._total = iterable, desc, unit, total
        self._first = self.n = initial
        self._begin = self._spoken = time.monotonic()
        self._also = ""

    def __iter__(self) -> Iterator:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_) -> None:
        pass

    def set_postfix(self, values: dict, refresh: bool = True) -> None:
        self._also = "".join(f", {name} {value}" for name, value in values.items())

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self._spoken >= EVERY:
            self._spoken = now
            left = (now - self._begin) * (self._total - self.n) / max(1, self.n - self._first)
            line = f"{self._desc}  {self.n:,}/{self._total:,} {self._unit}, {_duration(left)} left{self._also}\n"
            with suppress(OSError):
                print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
