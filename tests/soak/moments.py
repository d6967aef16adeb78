"""Moments of a run, as they show from outside, in which something may happen to it."""

import time
from collections.abc import Callable
from random import Random

from tests.soak.kinds import STEPS, VERIFY_EVERY
from tests.soak.life import Life

OFTEN = 0.001  # seconds


def wait_for(moment: str, life: Life, rng: Random) -> None:
    """Wait for it, or for one soon after it."""
    has_come = MOMENTS[moment](life, rng)
    while not has_come() and life.code() is None:
        time.sleep(OFTEN)
    time.sleep(rng.uniform(0, 0.05))


def _start(life: Life, rng: Random) -> Callable[[], bool]:
    pause = rng.uniform(0, 2 if life.forked else 15)
    return lambda: time.monotonic() > life.begin + pause


def _step(life: Life, rng: Random) -> Callable[[], bool]:
    step = _soon(life, rng)
    return lambda: _is_logged(life, "loss", step)


def _save(life: Life, rng: Random) -> Callable[[], bool]:
    later = _soon(life, rng)
    return lambda: life.saving() and _is_logged(life, "loss", later)


def _verification(life: Life, rng: Random) -> Callable[[], bool]:
    steps = [step for step in range(0, STEPS + 1, VERIFY_EVERY) if step >= life.done_before]
    step = rng.choice(steps[:2])
    if step == 0:
        return life.has_opened_its_log
    return lambda: _is_logged(life, "loss", step)


def _report(life: Life, rng: Random) -> Callable[[], bool]:
    return (life.folder / "checkpoints" / f"step-{STEPS}").is_dir


def _soon(life: Life, rng: Random) -> int:
    """A step that is still to come."""
    return min(STEPS, life.done_before + rng.randint(1, 5))


def _is_logged(life: Life, what: str, step: int) -> bool:
    return any(line["step"] >= step and what in line for line in life.lines())


MOMENTS = {
    "the start": _start,
    "a step": _step,
    "a save": _save,
    "a verification": _verification,
    "the report": _report,
}
