"""How a launch script ends: well, or with one readable message and exit code 2."""

import os
import sys
import time
import traceback
from collections.abc import Callable

from ffc_ds.errors import UserError

GRACE = 5.0  # seconds; the launcher ends all ranks when the first one ends, and that should be the one with the cause


def run_for_user(main: Callable[[], None], to_go_on: str = "the same command starts anew") -> None:
    """Run `main` and leave with the right code: 2 for a UserError, whose message is printed once, 130 for Ctrl-C, after
    which it says what `to_go_on`.

    Anything else is a defect: traceback and exit code 1, but not before another rank, whose UserError may have been
    the reason, had time to speak.
    """
    first = os.environ.get("RANK", "0") == "0"
    try:
        main()
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


def _leave(code: int) -> None:
    """Leave at once: an orderly teardown would wait for ranks that are no longer there."""
    sys.stdout.flush()
    os._exit(code)
