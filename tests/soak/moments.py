"""Moments of a run, as they show from outside, in which something may happen to it."""

import time
from collections.abc import Callable
from random import Random

from tests.soak.kinds import STEPS, VERIFY_EVERY
from tests.soak.life import Life

OFTEN = 0.0005  # seconds


def wait_for_a_moment(life: Life, rng: Random, only_steps: bool = False) -> str:
    """Wait for one that is drawn, and a little longer. Returns its name."""
    name = "a step" if only_steps else rng.choice(["the start", "a step", "a save", "a verification", "the report"])
    has_come = MOMENTS[name](life, rng)
    while not has_come() and life.code() is None:
        time.sleep(OFTEN)
    time.sleep(rng.uniform(0, 0.05))
    return name


def _start(life: Life, rng: Random) -> Callable[[], bool]:
    pause = rng.uniform(0, 2)
    return lambda: time.monotonic() > life.begin + pause


def _step(life: Life, rng: Random) -> Callable[[], bool]:
    step = rng.randint(min(STEPS, life.done_before + 1), STEPS)
    return lambda: _is_logged(life, "loss", step)


def _save(life: Life, rng: Random) -> Callable[[], bool]:
    later = rng.randint(min(STEPS, life.done_before + 1), STEPS)
    return lambda: life.saving() and _is_logged(life, "loss", later)


def _verification(life: Life, rng: Random) -> Callable[[], bool]:
    steps = [step for step in range(0, STEPS + 1, VERIFY_EVERY) if step >= life.done_before]
    step = rng.choice(steps)
    if step == 0:
        return life.has_opened_its_log
    return lambda: _is_logged(life, "loss", step)


def _report(life: Life, rng: Random) -> Callable[[], bool]:
    return (life.folder / "checkpoints" / f"step-{STEPS}").is_dir


def _is_logged(life: Life, what: str, step: int) -> bool:
    return any(line["step"] >= step and what in line for line in life.lines())


MOMENTS = {
    "the start": _start,
    "a step": _step,
    "a save": _save,
    "a verification": _verification,
    "the report": _report,
}
