"""Clock and memory of a device, as every benchmark reads them."""

import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from ffc_ds.distributed import barrier


def seconds(action: Callable[[], None], device: torch.device) -> float:
    """Wall clock of `action`, which all ranks begin together."""
    barrier()
    wait(device)
    start = perf_counter()
    action()
    wait(device)
    return perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Most bytes in use since `forget_peak`: of the device's memory, or resident in that of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # A child's ru_maxrss would begin at what its parent had.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


class Parts:
    """Where the time of a step goes: called with the name of each part as it ends, on the device's own clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks = [("", self._now())]

    def __call__(self, name: str) -> None:
        self.marks.append((name, self._now()))

    def _now(self):
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """By name, in the order of their first ends."""
        wait(self.device)
        found = {}
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            took = begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
            found[name] = found.get(name, 0.0) + took
        return found
