"""Functions called in processes that are forked from one which has imported everything: real processes, without the
seconds that imports take. A line of JSON in starts one, a line of JSON out says how it ended.

Run as a module it is the process that forks; `run_warm` is its client.
"""

import atexit
import json
import os
import pickle
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # several ranks, whatever GPUs there are


class Call(NamedTuple):
    """What a process does."""

    function: Callable
    arguments: tuple[Any, ...]
    environment: dict[str, str]


class Ended(NamedTuple):
    """How it went."""

    code: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    return os.environ | ON_CPU | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "WANDB_DISABLED": ""} | more


def run_warm(calls: Sequence[Call], kill_others: bool = False, timeout: float = 300) -> list[Ended]:
    """Make the calls at once, each in a process of its own, and wait for all.

    kill_others: when one ends with another code than 0, lest they wait for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(calls))]
        for place, call in zip(places, calls, strict=True):
            place.with_suffix(".call").write_bytes(pickle.dumps(sys.path) + pickle.dumps(tuple(call)))
        codes = _forking().run([str(place) for place in places], kill_others, timeout)
        streams = [[place.with_suffix(f".{name}").read_text() for name in ("stdout", "stderr")] for place in places]
    return [Ended(code, *texts) for code, texts in zip(codes, streams, strict=True)]


def run_script(script: str, *arguments: str) -> None:
    """`python script arguments`."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


@cache
def _forking() -> "_Forking":
    forking = _Forking()
    atexit.register(forking.close)
    return forking


class _Forking:
    def __init__(self):
        # Unbuffered: a buffer would hide lines from select.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        line = [sys.executable, "-m", "tests.warm"]
        self._process = subprocess.Popen(line, cwd=ROOT, env=environment(), start_new_session=True, **pipes)

    def run(self, places: list[str], kill_others: bool, timeout: float) -> list[int]:
        for place in places:
            self._process.stdin.write(json.dumps([place, kill_others]).encode() + b"\n")
        codes, deadline = {}, time.monotonic() + timeout
        while len(codes) < len(places):
            if not select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                self.close()
                _forking.cache_clear()
                raise subprocess.TimeoutExpired(places, timeout)
            place, code = json.loads(self._process.stdout.readline())
            codes[place] = code
        return [codes[place] for place in places]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def preload() -> None:
    """Import what runs import in their course, and draw what they all draw: each would take seconds for it."""
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    import numpy as np
    import transformers.models.vit.modeling_vit  # noqa: F401

    import ffc_ds.training.trainer  # noqa: F401
    from ffc_ds.evaluation.figures import roc_curves

    roc_curves({"any": (np.linspace(0, 1), np.linspace(0, 1))}, BytesIO())


def _serve() -> None:
    preload()
    running = {}
    while True:
        if select.select([0], [], [], 0.02)[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            place, kill_others = json.loads(line)
            if (child := os.fork()) == 0:
                _become(place)
            running[child] = place, kill_others
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                (place, kill_others), code = running.pop(child), os.waitstatus_to_exitcode(status)
                print(json.dumps([place, code]), flush=True)
                if code and kill_others:
                    for other in running:
                        os.kill(other, signal.SIGKILL)


def _become(place: str) -> None:
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{place}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 0
    try:
        with open(f"{place}.call", "rb") as file:
            sys.path[:] = pickle.load(file)  # where the modules of the rest are found
            function, arguments, variables = pickle.load(file)
        os.environ.clear()
        os.environ.update(variables)
        function(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
