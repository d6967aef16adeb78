"""How a launch script begins, and how it ends: well, or with one readable message and exit code 2."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

from ffc_ds.errors import UserError

GRACE = 5.0  # seconds; the launcher ends all ranks when the first one ends, and that should be the one with the cause


def run_for_user(main: Callable[[], None], to_go_on: str = "the same command starts anew") -> None:
    """Run `main` and leave with the right code: 2 for a UserError, whose message is printed once, 130 for Ctrl-C, after
    which it says what `to_go_on`.

    Anything else is a defect: traceback and exit code 1, but not before another rank, whose UserError may have been
    the reason, had time to speak. A rank that is done leaves at once, too: threads of libraries may abort a process that
    is taken down in order, and the launcher would call a finished run a failure.
    """
    first = os.environ.get("RANK", "0") == "0"
    if not sys.stderr.isatty():  # `progress` writes lines there; libraries would write bars, thousands of them
        os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        main()
        if "WORLD_SIZE" in os.environ:
            _leave(0)
    except UserError as error:
        if error.shared and not first:
            time.sleep(GRACE)
        else:
            print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        if first:
            print(f"\nstopped; {to_go_on}", file=sys.stderr, flush=True)
        _leave(130)
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(GRACE)
        traceback.print_exc()
        _leave(1)


def overruled_devices() -> str | None:
    """What to say if DeepSpeed's launcher was given a CUDA_VISIBLE_DEVICES and has put another in its place."""
    name, given = "CUDA_VISIBLE_DEVICES", None
    try:
        for parent in psutil.Process().parents():  # the launcher is two of them, and takes the variable from the second
            if not any(Path(part).name == "deepspeed" or "deepspeed.launcher." in part for part in parent.cmdline()):
                break
            given = parent.environ().get(name) or given
    except psutil.Error:
        return None
    taken = os.environ.get(name)
    if not given or given == taken:
        return None
    return f"{name}={given} is overruled by the launcher, which chose {taken}: tell it --include localhost:{given}"


def _leave(code: int) -> None:
    """Leave at once: an orderly teardown would wait for ranks that are no longer there."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
