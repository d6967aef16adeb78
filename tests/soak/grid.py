"""Runs that go on under another number of ranks and another ZeRO stage, as if they had not: `make soak` plays all."""

import itertools
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.launched import class_state, free_port, losses
from tests.soak.kinds import HEADS, Kind
from tests.warm import Call, environment, run_script, run_warm

WORLDS, STAGES = (1, 2, 3, 4), (0, 1, 2, 3)
MIDDLE, LAST = 2, 4
# A batch for 1 to 4 ranks, and a learning rate that keeps rounding what it is
SETTINGS = (
    *("--data.batch_size", "48", "--optim.lr", "0.01", "--eval.holdout", "0"),
    *("--train.steps", str(LAST), "--train.checkpoint_every", str(MIDDLE), "--train.keep_checkpoints", "3"),
)


class Move(NamedTuple):
    """A run that has begun as one kind, and goes on as another one of the same head."""

    before: Kind
    after: Kind

    def __str__(self) -> str:
        return f"{self.before} to {self.after.world} ranks, ZeRO-{self.after.stage}"


def all_moves() -> list[Move]:
    """Every number of ranks and every stage to every number of ranks and, in turn, to every stage."""
    moves = []
    for head, (first, stage) in itertools.product(HEADS, enumerate(STAGES)):
        for number, (before, after) in enumerate(itertools.product(WORLDS, WORLDS)):
            other = STAGES[(first + number + before) % len(STAGES)]
            moves.append(Move(Kind(head, before, stage), Kind(head, after, other)))
    return moves


def play(moves: list[Move], folder: Path) -> dict[Move, str | None]:
    """What is wrong with each move, or None. All runs begin at once, and all go on at once."""
    begun = {move.before: folder / str(move.before) for move in moves}
    _train([(kind, path, ()) for kind, path in begun.items()])
    ended = {move: folder / str(move) for move in moves}
    at = {move: str(begun[move.before] / "checkpoints" / f"step-{MIDDLE}") for move in moves}
    _train([(move.after, ended[move], ("--resume", at[move])) for move in moves])
    return {move: _difference(begun[move.before], ended[move]) for move in moves}


def play_all(folder: Path) -> int:
    """Returns how many moves went wrong."""
    moves, failed = all_moves(), 0
    for kind, of_kind in itertools.groupby(moves, lambda move: move.before):
        begin = time.monotonic()
        found = play(list(of_kind), folder / "grid")
        wrong = {move: trouble for move, trouble in found.items() if trouble}
        for move, trouble in wrong.items():
            print(f"BROKEN: {move}: {trouble}", flush=True)
        print(f"{kind}: {len(found)} ways to go on, after {time.monotonic() - begin:.0f} s", flush=True)
        failed += len(wrong)
        if not wrong:
            shutil.rmtree(folder / "grid")
    print(f"{len(moves)} ways to go on; {failed} runs were not what is promised", flush=True)
    return failed


def _train(runs: list[tuple[Kind, Path, tuple[str, ...]]]) -> None:
    calls = []
    for kind, path, arguments in runs:
        line = ["launch/train.py", *kind.settings(), *SETTINGS, "--output_dir", str(path), *arguments]
        job = {"WORLD_SIZE": kind.world, "LOCAL_SIZE": kind.world, "MASTER_ADDR": "127.0.0.1"}
        job = {name: str(value) for name, value in job.items()} | {"MASTER_PORT": free_port()}
        ranks = map(str, range(kind.world))
        calls += [Call(run_script, tuple(line), environment(RANK=rank, LOCAL_RANK=rank, **job)) for rank in ranks]
    failed = [each for each in run_warm(calls) if each.code]
    assert not failed, "".join(f"{each.code}: {each.stderr[-3000:]}" for each in failed)


def _difference(begun: Path, ended: Path) -> str | None:
    """Losses and class weights to rounding; who is in the pool, and in which order, exactly."""
    expected, found = losses(begun)[MIDDLE:], losses(ended)
    if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-5, atol=0):
        return f"losses {found} instead of {expected}"
    mine, others = (class_state(folder / "checkpoints" / f"step-{LAST}") for folder in (ended, begun))
    if mine.keys() != others.keys():
        return f"{sorted(mine.keys() ^ others.keys())} are not in both"
    return next((f"another {key}" for key, value in mine.items() if not _is_same(value, others[key])), None)


def _is_same(value: np.ndarray, other: np.ndarray) -> bool:
    if value.dtype.kind == "f":
        return value.shape == other.shape and np.allclose(value, other, rtol=1e-3, atol=1e-5)
    return np.array_equal(value, other)
