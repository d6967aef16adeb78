"""What may happen to a run, and what it then promises."""

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import NamedTuple

import psutil

from tests.soak.life import Life
from tests.soak.moments import MOMENTS

STOPPING = {"SIGTERM": 0, "SIGUSR1": 0, "SIGINT": 130}  # exit code of a run that one of its ranks is asked to stop


class Fault(NamedTuple):
    """strike: does it to a life. wrong: what of its promise a life did not keep, if it had come to its steps then.
    ranks: of which the run must have so many; a rank that stands still alone is seen by nobody."""

    name: str
    strike: Callable[[Life, Random], None]
    wrong: Callable[[Life], str | None]
    moments: tuple[str, ...] = tuple(MOMENTS)
    ranks: int = 1


def _fails(life: Life) -> str | None:
    return None if life.code() else "the launcher reports that all is well"


def _is_saved(life: Life) -> str | None:
    return None if life.was_saved() else "the step that it was in is not saved"


def _is_saved_with(code: int) -> Callable[[Life], str | None]:
    return lambda life: _is_saved(life) or (None if life.code() == code else f"not exit code {code}")


def _is_named(life: Life) -> str | None:
    named = any(words in life.text() for words in ("did not come", "does not answer"))
    return _fails(life) or (None if named else "nobody says which rank did not come")


def _goes_on(life: Life) -> str | None:
    return None if life.is_finished() and life.code() == 0 else "it did not go on to its end"


def _send(number: int, whom: Callable[[Life, Random], list[psutil.Process]]) -> Callable:
    def strike(life: Life, rng: Random) -> None:
        for process in whom(life, rng):
            with suppress(psutil.Error):
                process.send_signal(number)

    return strike


def _one_rank(life: Life, rng: Random) -> list[psutil.Process]:
    ranks = life.ranks()
    return [rng.choice(ranks)] if ranks else []


def _all_ranks(life: Life, rng: Random) -> list[psutil.Process]:
    return life.ranks()


def _first_launcher(life: Life, rng: Random) -> list[psutil.Process]:
    return life.launchers()[:1]


def _second_launcher(life: Life, rng: Random) -> list[psutil.Process]:
    return life.launchers()[1:]


def _both_launchers(life: Life, rng: Random) -> list[psutil.Process]:
    return life.launchers()


def _everybody(life: Life, rng: Random) -> list[psutil.Process]:
    return life.everybody()


def _group(number: int) -> Callable[[Life, Random], None]:
    def strike(life: Life, rng: Random) -> None:
        with suppress(ProcessLookupError):
            os.killpg(life.pid, number)

    return strike


def _stand_still(life: Life, rng: Random) -> None:
    ranks = _one_rank(life, rng)
    _send(signal.SIGSTOP, lambda *_: ranks)(life, rng)
    time.sleep(rng.uniform(0.2, 2))
    _send(signal.SIGCONT, lambda *_: ranks)(life, rng)


def _fill_the_disk(life: Life, rng: Random) -> None:
    """No file of the ranks may grow: to a writer the same as a disk without room, and for this run alone."""
    ranks, size = life.ranks(), rng.choice([0, 1 << 12, 1 << 16])
    for least in (size, resource.RLIM_INFINITY):
        for each in ranks:
            with suppress(psutil.Error, ProcessLookupError, OSError):
                _, most = resource.prlimit(each.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (least, most))
        if least == size:
            time.sleep(rng.uniform(0.1, 1.5))


def _goes_on_or_says_that_there_is_no_room(life: Life) -> str | None:
    said = any(words in life.text() for words in ("cannot be written", "could not be saved"))
    return None if life.code() == 2 and said else _goes_on(life)


FAULTS = [
    Fault("kill -9 of a rank", _send(signal.SIGKILL, _one_rank), _fails),
    Fault("kill -9 of all ranks", _send(signal.SIGKILL, _all_ranks), _fails),
    Fault("kill -9 of everybody", _send(signal.SIGKILL, _everybody), _fails),
    Fault("kill -9 of the launcher", _send(signal.SIGKILL, _first_launcher), _is_saved),
    Fault("kill -9 of its second process", _send(signal.SIGKILL, _second_launcher), _is_saved),
    Fault("kill -9 of both", _send(signal.SIGKILL, _both_launchers), _is_saved),
    Fault("SIGSTOP to a rank", _send(signal.SIGSTOP, _one_rank), _is_named, moments=("a step",), ranks=2),
    Fault("a rank that stands still for a while", _stand_still, _goes_on),
    Fault("a full disk for a while", _fill_the_disk, _goes_on_or_says_that_there_is_no_room),
]
for name, code in STOPPING.items():
    number = signal.Signals[name]
    FAULTS += [
        Fault(f"{name} to a rank", _send(number, _one_rank), _is_saved_with(code)),
        Fault(f"{name} to all ranks", _send(number, _all_ranks), _is_saved_with(code)),
        Fault(f"{name} to the process group", _group(number), _is_saved),
        Fault(f"{name} to the launcher", _send(number, _first_launcher), _is_saved),
        Fault(f"{name} to its second process", _send(number, _second_launcher), _is_saved),
    ]
