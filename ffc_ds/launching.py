"""How a launch script ends: well, or with one readable message and exit code 2 on every rank."""

import os
import sys
import time
from collections.abc import Callable

from ffc_ds.errors import UserError

GRACE = 5.0  # seconds; a launcher kills all ranks when the first one ends, so rank 0 must have spoken by then


def run_for_user(main: Callable[[], None]) -> None:
    """Run `main`; a UserError is printed by rank 0 alone and becomes exit code 2, Ctrl-C becomes exit code 130."""
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE)
        _leave(2)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped; go on from the last checkpoint with --resume latest", file=sys.stderr, flush=True)
        _leave(130)


def _leave(code: int) -> None:
    """Leave at once: an orderly teardown would wait for ranks that are no longer there."""
    sys.stdout.flush()
    os._exit(code)
