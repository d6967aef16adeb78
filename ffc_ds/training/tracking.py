"""What a run tells the world: metrics.jsonl always, Weights & Biases, and a progress bar. Rank 0 only."""

import json
import math
import netrc
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path

import wandb

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError
from ffc_ds.files import write_whole
from ffc_ds.progress import progress, say

ANSWER = 8.0  # seconds for a server to answer, and as long again to take the run in
UPLOAD = 60.0  # seconds for what is not there yet at the end
MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "run": "online", "dryrun": "offline"}


class Tracker:
    """Writes lines of metrics; on ranks other than 0 it does nothing.

    `wandb_id` is the run to continue from `start_step`, which is None for a new run; `is_new`: it is another one than
    that of which there are lines. Lines that cannot be written are kept, and tried again with the next.
    """

    def __init__(
        self, config: Config, start_step: int | None, steps: int, wandb_id: str | None = None, is_new: bool = False
    ):
        self.wandb_id = wandb_id
        self._run = self._bar = None
        if rank() != 0:
            return
        folder = Path(config.output_dir)
        self._path, self._unwritten = folder / "metrics.jsonl", b""
        self._keep_to(None if is_new else start_step)
        self._run = _begin(config, folder, wandb_id, wandb_mode(config.tracking.wandb))
        if self._run is not None:
            self.wandb_id = self._run.id
        self._bar = progress(desc="train", unit="steps", total=steps, initial=start_step or 0)

    def _keep_to(self, step: int | None) -> None:
        """Drop the lines of metrics.jsonl beyond `step`, or all: they are of steps that will be done again."""
        there = read_metrics(self._path) + [json.loads(line) for line in self._unwritten.splitlines()]
        kept = [] if step is None else [line for line in there if line["step"] <= step]
        self._there = {_kind(line) for line in kept if line["step"] == step}
        self._size, self._unwritten = _rewrite(self._path, kept), b""

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step. Weights & Biases knows no way back: it has the steps beyond it once.
        Raises UserError, on rank 0, if metrics.jsonl cannot be written."""
        if rank() == 0:
            self._keep_to(step)
            self._bar.update(step - self._bar.n)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def log(self, metrics: dict[str, float]) -> None:
        """Write one line; it must have "step". The bar shows loss, images/s and how many steps were refused, if any."""
        if rank() != 0:
            return
        metrics = {key: _plain(value) for key, value in metrics.items()}
        if _kind(metrics) in self._there:  # a run that is resumed at its end is verified once more
            return
        self._append(json.dumps(metrics).encode() + b"\n")
        known = {key: value for key, value in metrics.items() if value is not None}
        self._tell(lambda run: run.log(known, step=metrics["step"]))
        shown = {"loss": "{:.3f}", "images_per_second": "{:.0f}", "accuracy": "{:.4f}"}
        now = {key: form.format(metrics[key]) for key, form in shown.items() if metrics.get(key) is not None}
        if metrics.get("refused_steps"):
            now["refused"] = str(metrics["refused_steps"])
        self._bar.set_postfix({key.replace("images_per_second", "images/s"): text for key, text in now.items()})

    def _append(self, line: bytes) -> None:
        """Write what is unwritten to metrics.jsonl, all of it or nothing."""
        first, self._unwritten = not self._unwritten, self._unwritten + line
        try:
            with self._path.open("ab") as file:
                file.write(self._unwritten)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, self._size)
            if first:
                say(f"warning: {self._path} cannot be written: {error.strerror}. Its lines are kept until it can.")
            return
        self._size, self._unwritten = self._size + len(self._unwritten), b""

    def flush(self) -> None:
        """Write the lines of metrics that could not be written, if they can be now."""
        if rank() == 0 and self._unwritten:
            self._append(b"")

    def say(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if rank() == 0:
            say(text)

    def close(self, summary: dict | None = None, preempted: bool = False) -> None:
        """End the bar and the run; one that is preempted is to go on later."""
        self.flush()
        if self._bar is not None:
            self._bar.close()
        self._tell(lambda run: run.summary.update(summary or {}))
        if preempted:
            self._tell(lambda run: run.mark_preempting())
        self._tell(lambda run: run.finish(exit_code=int(preempted)))  # one that ends well is no preempted one there

    def _tell(self, what: Callable) -> None:
        """Weights & Biases, whose process may be gone: DeepSpeed's launcher signals all processes below a rank."""
        if self._run is None:
            return
        try:
            what(self._run)
        except (OSError, wandb.errors.Error):
            say(f"Weights & Biases has not everything yet: `wandb sync {self._run.settings.sync_dir}` later")
            self._run = None


def _begin(config: Config, folder: Path, wandb_id: str | None, mode: str):
    """The run in Weights & Biases; offline or none, with a word, if it cannot be had as `mode` says.

    Raises UserError if the settings want it online.
    """
    if mode == "disabled":
        return None
    try:
        # The mode is known by now, and a value that the library does not know would keep it from starting.
        os.environ.pop("WANDB_MODE", None)
        if mode == "online" and (trouble := _silence(wandb.setup().settings.base_url)):
            raise wandb.errors.CommError(trouble)
        timeouts = {"init_timeout": ANSWER, "finish_timeout": UPLOAD, "finish_timeout_raises": True}
        return wandb.init(
            project=config.tracking.project,
            name=config.tracking.name or folder.resolve().name,
            id=wandb_id,
            resume="allow" if wandb_id else None,
            mode=mode,
            dir=str(folder),
            config=asdict(config),
            settings=wandb.Settings(silent=True, console="off", **timeouts),
        )
    except (wandb.errors.Error, ValueError) as error:  # the latter for a WANDB_ variable that it does not understand
        reason = f"{' '.join(str(error).split()):.200}"
        if config.tracking.wandb == "online":
            raise UserError(
                f"tracking.wandb is online, but {reason}: choose offline, and `wandb sync` later."
            ) from error
        instead = {"online": "offline", "offline": "disabled"}[mode]
        say(f"Weights & Biases cannot be used {mode} ({reason}); going on {instead}")
        return _begin(config, folder, wandb_id, instead)


def _silence(url: str) -> str | None:
    """Why the server is taken to be out of reach; whatever it answers, it is not. The library would try for minutes."""
    found = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=ANSWER).close()
            found.append(None)
        except urllib.error.HTTPError:
            found.append(None)
        except (OSError, HTTPException) as error:
            found.append(f"{url} does not answer: {error}")

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name takes the time that it takes
    asking.start()
    asking.join(ANSWER)
    return found[0] if found else f"{url} does not answer within {ANSWER:.0f} s"


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, without those that a crash has damaged."""
    if not path.exists():
        return []
    return [line for text in path.read_bytes().split(b"\n")[:-1] if (line := _line(text)) is not None]


def _line(text: bytes) -> dict | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _rewrite(path: Path, lines: list[dict]) -> int:
    """Make `lines` the content of metrics.jsonl. Returns its size in bytes. Raises UserError."""
    content = "".join(json.dumps(line) + "\n" for line in lines)
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    return len(content)


def _kind(line: dict) -> tuple:
    """What two lines that say the same have in common."""
    return line["step"], *sorted(line)


def _plain(value):
    """JSON has no infinities and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def wandb_mode(wanted: str) -> str:
    """The mode of Weights & Biases for the setting tracking.wandb, of which "auto" leaves it to the library's own
    variables. Raises UserError for online without a key."""
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_wandb()
    if wanted == "auto":
        given = os.environ.get("WANDB_MODE", "").strip().lower()
        if os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
            given = "disabled"
        if given and given not in MODES:
            say(f"WANDB_MODE={given} is none of {', '.join(MODES)}; going on offline")
            given = "offline"
        wanted = MODES[given] if given else "online" if has_key else "offline"
    if wanted == "online" and not has_key:
        raise UserError("tracking.wandb is online, but there is no API key: run `wandb login`, or choose offline.")
    return wanted


def _netrc_has_wandb() -> bool:
    try:
        server = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
        return netrc.netrc().authenticators(server.netloc) is not None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
