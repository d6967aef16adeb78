"""When a run has diverged: steps refused in a row, or embeddings that are not finite; and where it goes back to.

A step is refused when its loss or a gradient is not finite: nothing is kept of it, on any rank.
"""

from pathlib import Path

from ffc_ds.config.settings import TrainConfig
from ffc_ds.data.randomness import mix
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError, shared
from ffc_ds.progress import say
from ffc_ds.training.checkpoints import newest, step_of

REWIND_STREAM = 300
AT_THE_END = 2  # refused steps in a row: the last of a run may meet one bad image, but not be the end of a divergence


class Diverged(UserError):
    """What shows that the run has diverged, on all ranks alike."""

    shared = True


class Divergence:
    """Counts refused steps and goes back as often as `train` allows; the same on all ranks.

    refused: steps of the whole run; refusing: the number of steps done before the first of those refused since the last
    one that was not, None if there is none; rewinds and lr_factor: how often the run went back, and what that has made
    of its learning rate.

    start: the checkpoint with which the run began, if with any.
    """

    def __init__(self, train: TrainConfig, start: Path | None = None):
        self._train, self._start = train, start
        self.refused, self._in_a_row, self.refusing = 0, 0, None
        self.rewinds, self.lr_factor = 0, 1.0
        self._went_to = None

    def count(self, done: int, applied: bool, looks_for_scale: bool) -> None:
        """The step after which `done` are done was applied or refused; the latter says little of the run while fp16
        looks for its loss scale."""
        if applied:
            self._in_a_row, self.refusing, self._went_to = 0, None, None
            return
        self.refused += 1
        self.refusing = done - 1 if self.refusing is None else self.refusing
        self._in_a_row += not looks_for_scale
        if self._in_a_row == 1 and rank() == 0:
            say(f"step {done} is refused: loss or gradients are not finite")

    def check(self, last: bool) -> None:
        """Raise Diverged if too many steps in a row were refused; few are too many where the run ends."""
        if self._in_a_row >= min(self._train.max_refused_steps, AT_THE_END if last else self._train.max_refused_steps):
            found = f"{self._in_a_row} steps in a row were refused, step {self.refusing + 1} first"
            raise Diverged(f"{found}: loss or gradients are not finite")

    def go_back(self, reason: Diverged, done: int, checkpoints: Path, lr: float) -> Path:
        """The checkpoint from which the run goes on, with `lr_factor` and `seed` changed.

        done: steps up to now; lr: optim.lr. Raises UserError on all ranks if it is to stop instead.
        """
        first = done if self.refusing is None else self.refusing
        path = self._checkpoint(checkpoints, first)
        if path is None or self._train.on_divergence == "stop" or self.rewinds == self._train.max_rewinds:
            raise shared(f"the run has diverged: {reason}. {self._advice(path, lr)}")
        self._went_to = step_of(path)
        self.rewinds += 1
        self.lr_factor /= 2
        self._in_a_row, self.refusing = 0, None
        if rank() == 0:
            times = f"time {self.rewinds} of at most {self._train.max_rewinds}"
            say(
                f"the run has diverged: {reason}. It goes back to {path}, {times}, with the learning rate times "
                f"{self.lr_factor:g} and other batches"
            )
        return path

    def _checkpoint(self, checkpoints: Path, first: int) -> Path | None:
        """The newest from before the refused steps; rather an earlier one if all steps since were refused."""
        doubtful = self._train.on_divergence == "stop" or first == self._went_to
        return newest(checkpoints, first - doubtful) or newest(checkpoints, first)

    def _advice(self, path: Path | None, lr: float) -> str:
        tried = f"It went back {self.rewinds} times, the learning rate is {self.lr_factor:g} of optim.lr. "
        tried = tried if self.rewinds else ""
        path = path or self._start
        if path is None:
            return f"{tried}There is no checkpoint from before: start anew with a lower --optim.lr: {lr / 10:g}?"
        by_itself = "" if self._train.on_divergence == "rewind" else " (--train.on_divergence rewind does so by itself)"
        return (
            f"{tried}The same command with --resume {path} and a lower --optim.lr, such as {lr / 2:g}, goes on from "
            f"before{by_itself}."
        )

    def seed(self, seed: int) -> int:
        """The seed of the batches: of the run until it goes back, then another one each time."""
        return int(mix(seed, REWIND_STREAM, self.rewinds)) >> 1 if self.rewinds else seed

    def state(self) -> dict:
        """What a checkpoint keeps (JSON)."""
        return {"refused": self.refused, "rewinds": self.rewinds, "lr_factor": self.lr_factor}

    def load(self, state: dict) -> None:
        """Take over what `state` returned."""
        self.refused, self.rewinds, self.lr_factor = state["refused"], state["rewinds"], state["lr_factor"]
