"""What an export reads of a finished run."""

from pathlib import Path

from ffc_ds.config.documents import read_json
from ffc_ds.errors import UserError


def read_results(run_dir: Path) -> dict:
    """The results.json of a finished run. Raises UserError if the run is not finished or the file is damaged."""
    path = run_dir / "results.json"
    try:
        results = read_json(path)
    except UserError as error:
        raise UserError(f"{error} RUN_DIR must be the output_dir of a finished training.") from None
    if isinstance(results, dict) and results.get("preempted"):
        raise UserError(
            f"The run in {run_dir} was stopped at step {results['steps']}: finish it first, --resume latest."
        )
    wanted = {"trained", "untrained", "steps", "identities", "images", "world_size", "seed", "versions", "config"}
    if missing := wanted - (results.keys() if isinstance(results, dict) else set()):
        raise UserError(f"{path} is no report of a training: it lacks {', '.join(sorted(missing))}.")
    return results
