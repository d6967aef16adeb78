"""Whether a run has ended by itself, or was stopped."""

from pathlib import Path

from ffc_ds.config.documents import read_json
from ffc_ds.errors import UserError


def is_finished(run: Path) -> bool:
    """Whether a run that came to its end lies in this folder; one that was stopped has results, too, which say so."""
    return (run / "results.json").exists() and not was_stopped(run)


def was_stopped(run: Path) -> bool:
    """Whether a run lies there that was asked to stop, has saved itself, and can go on."""
    try:
        return bool(read_json(run / "results.json").get("preempted"))
    except (UserError, AttributeError):  # whatever it is, it is not to be overwritten
        return False


def steps_of_finished(run: Path) -> int | None:
    """After how many steps the run in this folder ended by itself, which its model is of; None if it did not."""
    try:
        results = read_json(run / "results.json")
        return None if results.get("preempted") else results.get("steps")
    except (OSError, UserError, AttributeError):
        return None
