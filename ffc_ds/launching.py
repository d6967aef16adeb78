"""How a launch script begins, and how it ends: well, or with one readable message and exit code 2."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from ffc_ds.errors import UserError

GRACE = 5.0  # seconds; the launcher ends all ranks when the first one ends, and that should be the one with the cause
ending = threading.Event()  # set when this process is about to leave, for good or bad
TOO_MUCH = (
    "What helps: train.accumulation, or smaller batches; head.workspace_mb; a higher ZeRO stage; less beside it on "
    "that GPU. launch/plan.py says what a run takes."
)
LAUNCHERS = ("deepspeed", "torchrun")
LAUNCHER_MODULES = ("deepspeed.launcher.", "torch.distributed.")


def run_for_user(main: Callable[[], int | None], to_go_on: str = "the same command starts anew") -> None:
    """Run `main` and leave with the right code: what it returns, 2 for a UserError, whose message is printed once, and
    for a GPU without memory left, 130 for Ctrl-C, after which it says what `to_go_on`.

    Anything else is a defect: traceback and exit code 1, but not before another rank, whose UserError may have been
    the reason, had time to speak. A rank that is done leaves at once, too: threads of libraries may abort a process
    that is taken down in order, and the launcher would call a finished run a failure.
    """
    first = os.environ.get("RANK", "0") == "0"
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # launch/preemptible.py has its launcher ignore it
    if (found := launchers()) or _was_left():
        threading.Thread(target=_end_with, args=(found,), daemon=True).start()
    if not sys.stderr.isatty():  # `progress` writes lines there; libraries would write bars, thousands of them
        os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        for library in {"datasets", "huggingface_hub.utils"} & sys.modules.keys():  # these have read it already
            sys.modules[library].disable_progress_bars()
    try:
        code = main() or 0
        if code or "WORLD_SIZE" in os.environ:
            leave(code)
    except UserError as error:
        _refuse(str(error), error.shared and _another_says_it(first))
    except KeyboardInterrupt:
        if first:
            print(f"\nstopped; {to_go_on}", file=sys.stderr, flush=True)
        leave(130)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it for this
            _refuse(f"{'. '.join(str(error).split('. ')[:2])}. {TOO_MUCH}", False)
        ending.set()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(GRACE)
        traceback.print_exc()
        leave(1)


def _another_says_it(first: bool) -> bool:
    """Whether another rank has the error that every rank raises. Before they have met it may be that of one host."""
    torch = sys.modules.get("torch.distributed")
    met = torch is not None and torch.is_available() and torch.is_initialized()
    return not first if met else os.environ.get("LOCAL_RANK", "0") != "0"


def _refuse(message: str, told_by_another: bool) -> None:
    ending.set()
    if told_by_another:
        time.sleep(GRACE)
    else:
        print(f"\nerror: {message}\n", file=sys.stderr, flush=True)
    leave(2)


def launchers() -> list[psutil.Process]:
    """The processes that have started this rank and watch it, the nearest first."""
    found = []
    with suppress(psutil.Error):
        for parent in psutil.Process().parents():
            line = parent.cmdline()
            if not any(Path(part).name in LAUNCHERS or part.startswith(LAUNCHER_MODULES) for part in line):
                break
            found.append(parent)
    return found


def lives(process: psutil.Process) -> bool:
    """Whether a process is there, and more than an entry that its parent has not yet taken note of."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _was_left() -> bool:
    """Whether DeepSpeed's launcher was gone before this rank could look for it."""
    return "LOCAL_SIZE" in os.environ and os.getppid() == 1


def _end_with(launchers: list[psutil.Process]) -> None:
    """A rank whose launcher is gone would go on alone and hold its GPU: it is asked to end, as the launcher would."""
    while launchers and all(map(lives, launchers)):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def overruled_devices() -> str | None:
    """What to say if DeepSpeed's launcher was given a CUDA_VISIBLE_DEVICES and has put another in its place."""
    name, given = "CUDA_VISIBLE_DEVICES", None
    try:
        for launcher in launchers():  # DeepSpeed's is two of them, and takes the variable from the second
            given = launcher.environ().get(name) or given
    except psutil.Error:
        return None
    taken = os.environ.get(name)
    if not given or given == taken:
        return None
    return f"{name}={given} is overruled by the launcher, which chose {taken}: tell it --include localhost:{given}"


def leave(code: int) -> None:
    """Leave at once: an orderly teardown would wait for ranks that are no longer there."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a log on a disk that is full
            stream.flush()
    os._exit(code)
