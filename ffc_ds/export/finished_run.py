"""What an export reads of a finished run."""

import json
from pathlib import Path

from ffc_ds.errors import UserError


def read_results(run_dir: Path) -> dict:
    """The results.json of a finished run. Raises UserError if the run is not finished or the file is damaged."""
    path = run_dir / "results.json"
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. RUN_DIR must be the output_dir of a finished training.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    wanted = {"trained", "untrained", "steps", "identities", "images", "world_size", "seed", "versions", "config"}
    if missing := wanted - (results.keys() if isinstance(results, dict) else set()):
        raise UserError(f"{path} is no report of a training: it lacks {', '.join(sorted(missing))}.")
    return results
