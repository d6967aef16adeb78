"""Means and speeds over the steps since the last line of metrics."""

import resource
import time
from collections import defaultdict
from contextlib import contextmanager

import torch


class Meter:
    """Collects values without making the host wait: tensors stay on the device until they are asked for."""

    def __init__(self, images_per_step: int):
        self.images_per_step = images_per_step
        self._clear()

    def _clear(self):
        self._values, self._steps = defaultdict(list), 0
        self.start()

    def add(self, values: dict[str, torch.Tensor | float]) -> None:
        """Values of one micro-batch."""
        for name, value in values.items():
            self._values[name].append(value)

    def step(self) -> None:
        """An optimizer step is done."""
        self._steps += 1

    def start(self) -> None:
        """Training begins now."""
        self._begin, self._waited, self._saving = time.perf_counter(), 0.0, 0.0

    def timed(self, batches):
        """The same batches; the time until each one is there counts as waiting for data."""
        batches = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self):
        """What is done inside does not count as time of training."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    @contextmanager
    def saving(self):
        """As `paused`; the summary says how long."""
        begin = time.perf_counter()
        with self.paused():
            yield
        self._saving += time.perf_counter() - begin

    def summary(self) -> dict[str, float]:
        """Means of all values, images/s over all ranks, share of time spent waiting for data, seconds for which a
        save held training up, and the most memory that this rank has used (of the GPU if there is one); then starts
        anew."""
        elapsed = time.perf_counter() - self._begin
        means = {name: sum(values) / len(values) for name, values in self.state().items()}
        speed = {
            "images_per_second": self._steps * self.images_per_step / elapsed,
            "data_wait": self._waited / elapsed,
            "save_stall": self._saving,
            "memory_gib": peak_memory() / 2**30,
        }
        self._clear()
        return means | speed

    def state(self) -> dict[str, list[float]]:
        """The values so far, to be given to `load` of a resumed run."""
        state = {}
        for name, values in self._values.items():
            pending = [value for value in values if torch.is_tensor(value)]
            on_host = [value for value in values if not torch.is_tensor(value)]
            state[name] = on_host + (torch.stack(pending).tolist() if pending else [])
        return state

    def load(self, state: dict[str, list[float]]) -> None:
        """Take over the values of an interrupted run (its times are lost)."""
        self._clear()
        for name, values in state.items():
            self._values[name] = list(values)


def peak_memory() -> int:
    """The most bytes that this process has held so far, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
