"""When a run saves, and what a save that fails comes to: training goes on without it, but does not end without one.

The state is copied to host memory, for which training stands still, and a thread writes the copy while it goes on.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from ffc_ds.config.settings import TrainConfig
from ffc_ds.distributed import Aside, broadcast_object, rank
from ffc_ds.errors import UserError, shared
from ffc_ds.heads.base import Head
from ffc_ds.progress import say
from ffc_ds.training import checkpoint
from ffc_ds.training.checkpoints import tidy
from ffc_ds.training.engine import Engine
from ffc_ds.training.watchdog import patience

PAUSE = 10.0  # seconds between two attempts at the end
LONG = 0.1, 1.0  # to stand still for this share of the time, and for these seconds at once, is worth a word


class Saver:
    """Writes the checkpoints of a run to `folder`. All ranks call it alike; leaving a `with` waits for one under way,
    unless other ranks may not come to its end.

    at: is told where this rank is, now and then, while the last one waits.
    saved: the steps that were done at the newest one, None if there is none yet.
    """

    def __init__(self, folder: Path, settings: TrainConfig, at: Callable[[str], None]):
        self.folder, self._settings, self._at = folder, settings, at
        self._aside, self._thread = Aside(patience(settings)), ThreadPoolExecutor(1)
        self._writing: tuple[int, Future] | None = None
        self.saved, self._told, self._went_on = None, False, time.monotonic()
        self._due = self._next = settings.checkpoint_every

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, error, *_) -> None:
        if error is None or getattr(error, "shared", False):
            self.wait()

    def is_due(self, done: int) -> bool:
        """After `done` steps: every so many, and at once when a save is seen to have failed, which is looked for now
        and then."""
        if self._writing is not None and self._writing[1].done():
            self._writing[1].result()  # raises what has ended the thread of this rank: the others wait for it there
        if self._due <= done < self._next and self._writing is not None:
            if broadcast_object(self._writing[1].done()):
                self.wait()
            else:
                self._look_after(done)
        return done >= self._due

    def goes_on_from(self, step: int) -> None:
        """The checkpoint of this step is the newest."""
        self.saved, self._next = step, self._next_after(step)
        self._due = self._next

    def save(self, done: int, last: bool, engine: Engine, head: Head, run: dict, names: pa.Array | None = None) -> None:
        """Begin to write a checkpoint, once the one before is there. The last one is there when this returns, and
        waits for better times; raises UserError on all ranks if they do not come."""
        begin = time.monotonic()
        self.wait()
        copy = checkpoint.copy(done, engine, head, run, names)
        self._next = self._next_after(done)
        self._look_after(done)
        self._writing = done, self._thread.submit(self._write, copy)
        if last:
            self._see_through(copy)
        else:
            self._tell(begin)

    def wait(self) -> None:
        """For a save under way; says so if it failed."""
        if (trouble := self._trouble()) is not None:
            self._say(f"warning: {trouble} The run goes on without it.")

    def how_to_go_on(self, done: int) -> str:
        """What to say of a run that stops after `done` steps."""
        if self.saved == done:
            return "--resume latest goes on from there"
        if self.saved is None:
            return "it could not be saved, and there is no checkpoint from before"
        return f"it could not be saved: --resume latest goes on from step {self.saved}"

    def _next_after(self, done: int) -> int:
        every = self._settings.checkpoint_every
        return (done // every + 1) * every

    def _look_after(self, done: int) -> None:
        """When to look whether a save has failed, and is to be tried again."""
        self._due = min(done + max(1, self._settings.checkpoint_every // 10), self._next)

    def _trouble(self) -> str | None:
        """Why the save under way, which is waited for, has failed."""
        if self._writing is None:
            return None
        step, future = self._writing
        trouble, self._writing = future.result(), None
        if trouble is None:
            self.saved, self._due = step, self._next
        else:
            self._due = 0
        return trouble

    def _see_through(self, copy: checkpoint.Copy) -> None:
        deadline = time.monotonic() + 60 * self._settings.final_save_minutes
        while (trouble := self._trouble()) is not None:
            if not broadcast_object(time.monotonic() < deadline):
                raise shared(f"{trouble} The results are not written: make room, and --resume auto goes on.")
            self._say(f"warning: {trouble} This is the last one: waiting for room.")
            self._at(f"waiting for room for the checkpoint of step {copy.step}")
            time.sleep(min(PAUSE, 6 * self._settings.final_save_minutes))
            self._writing = copy.step, self._thread.submit(self._write, copy)

    def _write(self, copy: checkpoint.Copy) -> str | None:
        """Runs in the thread."""
        try:
            checkpoint.write(self.folder / f"step-{copy.step}", copy, self._aside)
        except UserError as error:
            return str(error)
        if rank() == 0:
            with suppress(OSError):  # the next one removes it
                tidy(self.folder, self._settings.keep_checkpoints)
        return None

    def _tell(self, begin: float) -> None:
        """Once, if a save that began then took long from training."""
        stood, between = time.monotonic() - begin, begin - self._went_on
        self._went_on = time.monotonic()
        share, least = LONG
        if stood > max(share * between, least) and not self._told:
            self._told = True
            self._say(
                f"saving holds training up: {stood:.1f} s after {between:.1f} s. A larger "
                "train.checkpoint_every does so less often"
            )

    def _say(self, text: str) -> None:
        if rank() == 0:
            say(text)
