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
