"""Whether a run has ended by itself."""

from pathlib import Path

from ffc_ds.config.documents import read_json
from ffc_ds.errors import UserError


def is_finished(run: Path) -> bool:
    """Whether such a run lies in this folder; one that was stopped has results, too, which say so."""
    path = run / "results.json"
    try:
        return path.exists() and not read_json(path).get("preempted")
    except (UserError, AttributeError):  # whatever it is, it is not to be overwritten
        return True


def steps_of_finished(run: Path) -> int | None:
    """After how many steps the run in this folder ended by itself, which its model is of; None if it did not."""
    try:
        results = read_json(run / "results.json")
        return None if results.get("preempted") else results.get("steps")
    except (OSError, UserError, AttributeError):
        return None
