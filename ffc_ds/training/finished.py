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
