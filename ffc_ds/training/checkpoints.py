"""The folder with the checkpoints of a run: which one to go on from, and what need not be kept."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path

from ffc_ds.distributed import broadcast_object, rank, together
from ffc_ds.errors import UserError, shared
from ffc_ds.progress import say
from ffc_ds.training.checkpoint import discard
from ffc_ds.training.finished import is_finished
from ffc_ds.training.manifest import MANIFEST, find_damage


def find(resume: str | None, folder: Path) -> Path | None:
    """The undamaged checkpoint that `resume` names: "latest" in `folder`, "auto" (the same, or none), or a path.

    Of those in `folder` the newest that is undamaged; damaged ones that are newer are named damaged-step-N. Raises
    UserError on all ranks if there is none, if a path leads to a damaged one, or if a run that starts anew, or from
    elsewhere, would overwrite what is there.
    """
    candidates = _as_rank_0_sees_them(lambda: _candidates(resume, folder), folder, resume)
    damages = {}
    for path in candidates:
        damage = find_damage(path)
        if damage is None:
            together(lambda: _set_damaged_aside(damages))
            return path
        damages[path] = damage
    if not damages:
        return None
    beside, names = candidates[0].parent, {path.name for path in candidates}
    others = _as_rank_0_sees_them(lambda: [path for _, path in complete(beside) if path.name not in names], beside)
    whole = [path.name for path in others if find_damage(path) is None]
    advice = f"Undamaged beside it: {', '.join(whole)}."
    if not whole:
        advice = f"There is no undamaged one in {beside}: move it away, or give another --output_dir, to start anew."
    if (candidates[0] / "checkpoints").is_dir():
        advice = f"{candidates[0]} is a run: give a step-N in its checkpoints, or latest with it as --output_dir."
    raise shared("\n".join([*damages.values(), advice]))


def _candidates(resume: str | None, folder: Path) -> list[Path]:
    """Newest first."""
    _finish_renaming(folder)
    there = [path for _, path in reversed(complete(folder))]
    goes_on = there if resume in ("auto", "latest") else resume and Path(resume).resolve().parent == folder.resolve()
    if there and not goes_on:
        raise UserError(f"{folder} holds checkpoints of an earlier run: --resume latest, or another --output_dir.")
    if not goes_on and is_finished(folder.parent):
        finished = f"{folder.parent} holds a finished run, which is not overwritten"
        raise UserError(f"{finished}: choose another --output_dir, or move it away.")
    if resume == "latest" and not there:
        raise UserError(f"--resume latest: there is no checkpoint in {folder}. Leave --resume out to start anew.")
    if resume in (None, "auto", "latest"):
        return there
    if not os.path.isdir(resume):
        raise UserError(f"--resume {resume}: there is no such folder. It must be a step-N folder of a run, or latest.")
    return [Path(resume)]


def _finish_renaming(folder: Path) -> None:
    """Give a whole checkpoint its name, if a save was killed before it did: the one that it replaces has lost its."""
    for whole in [path.parent for path in folder.glob(f".step-*.unfinished/{MANIFEST}")]:
        target = folder / whole.name.removeprefix(".").removesuffix(".unfinished")
        if not target.exists():
            with suppress(OSError):  # where nothing can be changed
                whole.rename(target)


def _as_rank_0_sees_them(look: Callable[[], list[Path]], folder: Path, resume: str | None = None) -> list[Path]:
    """Checkpoints on all ranks, by their names, because `folder` may be called otherwise on another host, and a network
    file system may show there for some seconds what was there before."""
    names = broadcast_object(together(lambda: [path.name for path in look()] if rank() == 0 else None))
    given = resume not in (None, "auto", "latest")
    return [Path(resume)] if given else [folder / name for name in names]


def newest(folder: Path, step: float = inf) -> Path | None:
    """The newest undamaged checkpoint in `folder` that is not beyond `step`, on all ranks."""

    def up_to_it():
        return [path for number, path in reversed(complete(folder)) if number <= step]

    candidates = _as_rank_0_sees_them(up_to_it, folder)
    return next((path for path in candidates if find_damage(path) is None), None)


def step_of(path: Path) -> int:
    """The number of steps done when it was saved."""
    return int(path.name.removeprefix("step-"))


def complete(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint in `folder`, damaged or not."""
    named = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return sorted((int(number), path) for number, path in named if number.isdigit())


def leave_behind(folder: Path, step: int) -> None:
    """Rename the checkpoints in `folder` beyond `step`, because the run goes on from there: `latest` must not mean what
    it leaves behind. All ranks call it; raises UserError on all of them if a name cannot be changed."""

    def of_first_rank():
        for newer in [path for number, path in complete(folder) if number > step]:
            say(f"going on from step {step}; what was beyond it is kept as {_set_aside(newer, 'left')}")

    together(lambda: of_first_rank() if rank() == 0 else None)


def _set_damaged_aside(damages: dict[Path, str]) -> None:
    for path, damage in damages.items() if rank() == 0 else ():
        say(f"warning: {damage} It is kept as {_set_aside(path, 'damaged')}")


def _set_aside(path: Path, why: str) -> Path:
    target = path.with_name(f"{why}-{path.name}")
    discard(target)
    try:
        return path.rename(target)
    except OSError as error:
        raise UserError(f"{path} cannot be renamed to {target.name}: {error.strerror}.") from error


def tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what an interrupted run left of others. Rank 0 only."""
    for _, old in complete(folder)[:-keep]:
        discard(old)
    for left in [*folder.glob(".step-*.unfinished"), *folder.glob(".*step-*.discarded")]:
        shutil.rmtree(left, ignore_errors=True)
