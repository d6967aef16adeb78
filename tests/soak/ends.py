"""Whether two runs have come to the same end."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.launched import class_state, metrics
from tests.soak.kinds import STEPS

TOLD = ("untrained", "trained", "steps", "refused_steps", "rewinds", "preempted")  # of results.json


def differences(run: Path, other: Path) -> list[str]:
    """What is not the same, bit for bit."""
    found = []
    if metrics(run) != metrics(other):
        found.append("metrics.jsonl")
    model = "model/model.safetensors"
    if (run / model).read_bytes() != (other / model).read_bytes():
        found.append(model)
    if _results(run) != _results(other):
        found.append("results.json")
    checkpoints = [folder / "checkpoints" / f"step-{STEPS}" for folder in (run, other)]
    mine, others = map(state_of, checkpoints)
    if mine.keys() != others.keys():
        found.append("the names in the last checkpoint")
    different = [key for key in mine.keys() & others.keys() if mine[key].tobytes() != others[key].tobytes()]
    if different:
        found.append(f"{len(different)} parts of the last checkpoint, such as {min(different)}")
    return found


def state_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """Class state, weights and optimizer state."""
    state = class_state(checkpoint)
    for path in checkpoint.glob("backbone/*.safetensors"):
        state |= {f"backbone.{key}": value for key, value in load_file(path).items()}
    return state


def _results(run: Path) -> dict:
    results = json.loads((run / "results.json").read_text())
    return {key: results[key] for key in TOLD}
