"""Things happen to runs, which must end as if nothing had: `make soak`, or python -m tests.soak --help."""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.grid import play_all
from tests.soak.soak import Soak
from tests.warm import environment, preload


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="for how long rounds begin")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what happens is drawn with it")
    parser.add_argument("--round", type=int, help="only this one")
    parser.add_argument("--grid", action="store_true", help="then have runs go on as other kinds, in all ways")
    parser.add_argument("--folder", type=Path, help="for the runs; by default a new one")
    given = parser.parse_args()
    preload()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {given.seed}, in {folder}", flush=True)
    soak, deadline = Soak(folder.resolve(), given.seed), time.monotonic() + 60 * given.minutes
    for number in itertools.count() if given.round is None else [given.round]:
        if time.monotonic() > deadline:
            break
        soak.round(number)
    soak.damage_every_file()
    print(soak.summary(), flush=True)
    failed = soak.failed + (play_all(folder.resolve()) if given.grid and given.round is None else 0)
    return int(failed > 0)


if __name__ == "__main__":
    if environment() != os.environ:  # with which torch must have started where those that are forked are to sum alike
        os.execve(sys.executable, [sys.executable, "-m", "tests.soak", *sys.argv[1:]], environment())
    sys.exit(main())
