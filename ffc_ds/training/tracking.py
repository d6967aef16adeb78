"""What a run tells the world: metrics.jsonl always, Weights & Biases, and a progress bar. Rank 0 only."""

import json
import math
import netrc
import os
from dataclasses import asdict
from pathlib import Path

import wandb
from tqdm import tqdm

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError


class Tracker:
    """Writes lines of metrics; on ranks other than 0 it does nothing.

    `wandb_id` is the run to continue; lines of metrics.jsonl after `start_step` belong to steps that will be done
    again and are dropped.
    """

    def __init__(self, config: Config, start_step: int, steps: int, wandb_id: str | None = None):
        self.wandb_id = wandb_id
        self._run = self._bar = None
        if rank() != 0:
            return
        folder = Path(config.output_dir)
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= start_step] if start_step else []
        aside = self._path.with_suffix(".unfinished")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        aside.rename(self._path)
        mode = wandb_mode(config.tracking.wandb)
        if mode != "disabled":
            self._run = _begin(config, folder, wandb_id, mode)
            self.wandb_id = self._run.id
        self._bar = tqdm(total=steps, initial=start_step, unit="step", desc="train", dynamic_ncols=True, mininterval=1)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def log(self, metrics: dict[str, float]) -> None:
        """Write one line; it must have "step". The bar shows loss and images/s."""
        if rank() != 0:
            return
        metrics = {key: _plain(value) for key, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._run is not None:
            self._run.log({key: value for key, value in metrics.items() if value is not None}, step=metrics["step"])
        shown = {"loss": "{:.3f}", "images_per_second": "{:.0f}", "accuracy": "{:.4f}"}
        now = {key: form.format(metrics[key]) for key, form in shown.items() if metrics.get(key) is not None}
        self._bar.set_postfix({key.replace("images_per_second", "images/s"): text for key, text in now.items()})

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if rank() == 0:
            tqdm.write(text)

    def close(self, summary: dict | None = None) -> None:
        """End the bar and the run."""
        if self._bar is not None:
            self._bar.close()
        if self._run is not None:
            self._run.summary.update(summary or {})
            self._run.finish()


def _begin(config: Config, folder: Path, wandb_id: str | None, mode: str):
    """The run in Weights & Biases. Raises UserError if it is to be online and cannot be."""

    def begin(mode):
        return wandb.init(
            project=config.tracking.project,
            name=config.tracking.name or folder.resolve().name,
            id=wandb_id,
            resume="allow" if wandb_id else None,
            mode=mode,
            dir=str(folder),
            config=asdict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    try:
        return begin(mode)
    except wandb.errors.Error as error:
        if config.tracking.wandb == "online":
            raise UserError(
                f"tracking.wandb is online, but {error}: choose offline, and `wandb sync` later."
            ) from error
        tqdm.write(f"Weights & Biases cannot be used online ({error}); going on offline")
        return begin("offline")


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _plain(value):
    """JSON has no infinities and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def wandb_mode(wanted: str) -> str:
    """The mode of Weights & Biases for the setting tracking.wandb. Raises UserError for online without a key."""
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_wandb()
    if wanted == "auto":
        wanted = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
    if wanted == "online" and not has_key:
        raise UserError("tracking.wandb is online, but there is no API key: run `wandb login`, or choose offline.")
    return wanted


def _netrc_has_wandb() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
