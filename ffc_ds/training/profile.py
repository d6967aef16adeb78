"""A trace of some steps: where their time goes, operator by operator, on the host and on the GPU."""

from pathlib import Path

import torch

from ffc_ds.distributed import rank
from ffc_ds.progress import say

WARM_UP = 5  # steps that set up workspaces and state, and are not like those to come
VIEWER = "https://ui.perfetto.dev (Open trace file), which sends it nowhere"


class Profile:
    """A context in which `step` is called after each step. Rank 0 writes a Chrome trace of `steps` of them, which begin
    after the warm-up, or of as many as there are until the end, to `folder`; with 0 it does nothing.

    done: steps before the first one. last: steps at the end.
    """

    def __init__(self, steps: int, folder: Path, done: int, last: int):
        self.path = folder / f"from_step_{done + WARM_UP + 1}.json.gz"
        self.profiler = None
        if not steps or rank() != 0:
            return
        if last - done <= WARM_UP:
            say(f"train.profile: no trace, which would begin after {WARM_UP} steps; there are {last - done} to do")
        else:
            when = torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
            self.profiler = torch.profiler.profile(schedule=when, on_trace_ready=self._write)

    def __enter__(self) -> "Profile":
        if self.profiler is not None:
            self.profiler.start()
        return self

    def step(self) -> None:
        if self.profiler is not None:
            self.profiler.step()

    def __exit__(self, *error) -> None:
        if self.profiler is not None:
            self.profiler.stop()

    def _write(self, profiler: torch.profiler.profile) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.path))
        except OSError as error:
            say(f"warning: the trace {self.path} cannot be written: {error.strerror}")
        else:
            say(f"train.profile: the trace is {self.path}; open it at {VIEWER}")
