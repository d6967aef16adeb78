"""When a run saves, and what a save that fails comes to: training goes on without it, but does not end without one."""

import time
from pathlib import Path

import torch

from ffc_ds.config.settings import TrainConfig
from ffc_ds.distributed import all_reduce, barrier, broadcast_object, rank
from ffc_ds.errors import UserError, shared
from ffc_ds.heads.base import Head
from ffc_ds.progress import say
from ffc_ds.training import checkpoint
from ffc_ds.training.checkpoints import tidy
from ffc_ds.training.class_state import class_state_bytes
from ffc_ds.training.engine import Engine

PAUSE = 10.0  # seconds between two attempts at the end


class Saver:
    """Writes the checkpoints of a run to `folder`. All ranks call it alike.

    saved: the steps that were done at the newest one, None if there is none yet.
    """

    def __init__(self, folder: Path, settings: TrainConfig):
        self.folder, self._settings = folder, settings
        self._size = self.saved = None
        self._due = settings.checkpoint_every

    def is_due(self, done: int) -> bool:
        """After `done` steps: every so many, some steps after a save that failed, and as soon as may be after one that
        was put off."""
        return done >= self._due

    def goes_on_from(self, step: int) -> None:
        """The checkpoint of this step is the newest."""
        every = self._settings.checkpoint_every
        self.saved, self._due = step, (step // every + 1) * every

    def save(self, done: int, last: bool, engine: Engine, head: Head, run: dict) -> None:
        """Write a checkpoint, or say why that failed; the last one waits for better times. Raises UserError on all
        ranks if they do not come."""
        deadline = time.monotonic() + 60 * self._settings.final_save_minutes
        while (trouble := self._attempt(done, engine, head, run)) is not None:
            if not last:
                self._due = done + max(1, self._settings.checkpoint_every // 10)
                self._say(f"warning: {trouble} Training goes on; the next attempt is after step {self._due}.")
                return
            if not broadcast_object(time.monotonic() < deadline):
                raise shared(f"{trouble} The results are not written: make room, and --resume auto goes on.")
            self._say(f"warning: {trouble} This is the last one: waiting for room.")
            time.sleep(min(PAUSE, 6 * self._settings.final_save_minutes))
        self.goes_on_from(done)
        if rank() == 0:
            tidy(self.folder, self._settings.keep_checkpoints)
        barrier()

    def how_to_go_on(self, done: int) -> str:
        """What to say of a run that stops after `done` steps."""
        if self.saved == done:
            return "--resume latest goes on from there"
        if self.saved is None:
            return "it could not be saved, and there is no checkpoint from before"
        return f"it could not be saved: --resume latest goes on from step {self.saved}"

    def _attempt(self, done, engine, head, run) -> str | None:
        try:
            needed = self._estimate(engine, head) if self._size is None else self._size
            self._size = checkpoint.save(self.folder / f"step-{done}", done, engine, head, run, needed)
        except UserError as error:
            return str(error)
        return None

    def _estimate(self, engine, head) -> int:
        """Bytes of a checkpoint, before there is one."""
        own = engine.state_bytes() + class_state_bytes(engine, head)
        return int(all_reduce(torch.tensor(own, device=engine.device)))

    def _say(self, text: str) -> None:
        if rank() == 0:
            say(text)
