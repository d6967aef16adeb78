"""A cell of a comparison by accuracy: a run of its own, and what it gave."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffc_ds.config.paths import PROJECT
from ffc_ds.errors import UserError
from ffc_ds.training.finished import is_finished
from ffc_ds.training.tracking import read_metrics


@dataclass(frozen=True)
class Cell:
    """A run: its settings beside those of the recipe's `every`, as JSON, and a seed."""

    settings: str
    seed: int

    @property
    def name(self) -> str:
        """Settings decide it, so what two experiments have in common is run once."""
        digest = hashlib.sha256(self.settings.encode()).hexdigest()[:8]
        return f"{json.loads(self.settings).get('head.name', 'ffc')}-{digest}-seed{self.seed}"


def train_cell(cell: Cell, every: dict, folder: Path, ranks: int, settings: tuple[str, ...]) -> dict:
    """Train it in `folder`, from its last checkpoint if it was interrupted there. Returns what it is and what it gave;
    `curve` is [images seen, seconds of training, accuracy] at each verification.

    Raises UserError, with the end of its log, if the run fails.
    """
    if is_finished(folder):  # and asked for again
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = every | json.loads(cell.settings) | {"output_dir": str(folder), "seed": cell.seed, "resume": "auto"}
    arguments = [part for key, value in own.items() for part in (f"--{key}", _written(value))]
    arguments += [f"--{setting}" for setting in settings]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    launcher += ["--master_port", str(port), str(PROJECT / "launch" / "train.py")]
    with open(folder / "log.txt", "w") as log:
        code = subprocess.run([*launcher, *arguments], stdout=log, stderr=log).returncode
    if code:
        end = (folder / "log.txt").read_text()[-2000:]
        raise UserError(f"the run in {folder} ended with code {code}. The end of its log:\n{end}")
    results = json.loads((folder / "results.json").read_text())
    if results["preempted"]:
        raise UserError(f"the run in {folder} was stopped at step {results['steps']}; the same command goes on.")
    if results["trained"]["accuracy"] is None:
        raise UserError(f"the run in {folder} has no accuracy: {results['trained']['reason']}.")
    lines = read_metrics(folder / "metrics.jsonl")
    logged = [line for line in lines if "images_per_second" in line]
    speed = float(np.median([line["images_per_second"] for line in logged]))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "settings": json.loads(cell.settings),
        "seed": cell.seed,
        "images_per_second": speed,
        "memory_gib": logged[-1]["memory_gib"],
        "curve": _curve(lines, results["images"]),
        **{key: results[key] for key in ("trained", "untrained", "steps", "images", "identities", "versions")},
    }


def _written(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _curve(lines: list[dict], images: int) -> list[list[float]]:
    """Time is that of the steps and of the pass before them that makes classes of features, without verifications,
    checkpoints and the start; `images` are an epoch."""
    logged = [line for line in lines if "images_per_second" in line]
    steps = [0, *(line["step"] for line in logged)]
    seen = images * np.array([0.0, *(line["epoch"] for line in logged)])
    before = sum(line.get("prefill_seconds", 0.0) for line in lines)
    seconds = before + np.r_[0.0, np.cumsum(np.diff(seen) / [line["images_per_second"] for line in logged])]
    verified = [(line["step"], line["accuracy"]) for line in lines if line.get("accuracy") is not None]
    return [[float(np.interp(step, steps, value)) for value in (seen, seconds)] + [found] for step, found in verified]
