"""A run that is asked to stop: the step is finished and saved, and all ranks leave after the same one.

Whoever asks may ask one rank or all. Ctrl-C, a scheduler, and DeepSpeed's launcher, which passes on what it gets as
SIGTERM, send signals; so does a rank to itself when its launcher is gone (launching.py).
"""

import os
import signal
import threading
import time

import numpy as np
import torch
import torch.distributed as dist

from ffc_ds.distributed import rank, to_device, world_size
from ffc_ds.launching import launchers, leave
from ffc_ds.progress import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Under a launcher a signal to all processes comes twice to a rank, in any order: seconds for that
TOGETHER, PASSED_ON = 1.0, 5.0  # of any signal, and of the SIGTERM that DeepSpeed's launcher makes of it


class Preemption:
    """Inside of `with`, signals ask the run to stop instead of ending it; a second one ends this rank at once.

    `asked`: the signal that this rank got; `code`: the exit code of a run that was stopped so.
    """

    def __init__(self, device: torch.device):
        self.asked, self.code = None, 0
        self._launched, self._asked_at = bool(launchers()), 0.0
        self._aside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device, self._sent = device, None

    def __enter__(self) -> "Preemption":
        # Python runs handlers in the main thread and between two of its own lines; the file is written to at once.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._file_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._sent is not None:
            self._sent.value()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._file_before)
        os.close(self._write)

    def agreed(self) -> bool:
        """Whether any rank had been asked to stop when the step before this one ended: the same on all ranks, each of
        which calls it after every step. The host does not wait for the device."""
        before, self._sent = self._sent, _Flag(self._wish(), self._device, self._aside)
        wish = before.value() if before is not None else 0
        self.code = 130 if wish == 2 else 0
        return wish > 0

    def _wish(self) -> int:
        return 0 if self.asked is None else 1 + (self.asked == signal.SIGINT)

    def _listen(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] in SIGNALS:
                self._receive(signal.Signals(number[0]))
        os.close(self._read)

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        again_within = 0.0 if not self._launched else PASSED_ON if number == signal.SIGTERM else TOGETHER
        if self.asked is None:
            self._asked_at, self.asked = now, number
            if rank() == 0:
                say(f"{number.name}: the run stops when this step is saved; one more signal stops it at once")
        elif now - self._asked_at < again_within:
            self.asked = number if number == signal.SIGINT else self.asked
        else:
            say(f"{number.name} again: rank {rank()} stops at once, at the last checkpoint")
            leave(128 + number)


class _Flag:
    """The largest of the ranks' values, a small integer, to be read later, when it has long been there."""

    def __init__(self, value: int, device: torch.device, aside: "torch.cuda.Stream | None"):
        self._ready = self._work = None
        with torch.cuda.stream(aside):  # nothing of the step waits for it
            self._flag = to_device(np.array([value], np.int32), device)
            if world_size() > 1:
                self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
            if aside is not None:
                if self._work is not None:
                    self._work.wait()  # for the stream, not for the host
                found = torch.empty(1, dtype=torch.int32, pin_memory=True).copy_(self._flag, non_blocking=True)
                self._flag, self._work, self._on_device = found, None, self._flag
                self._ready = torch.cuda.Event()
                self._ready.record()

    def value(self) -> int:
        if self._work is not None:
            self._work.wait()
        if self._ready is not None:
            self._ready.synchronize()
        return int(self._flag)
