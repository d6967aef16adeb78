"""One writer: a file in the output folder says which process writes there, and shows that it is alive.

Where the process can be looked for, on the same host and in the same container, that decides. Elsewhere its file must
change now and then; clocks of two hosts are not compared.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ffc_ds.distributed import this_host
from ffc_ds.errors import UserError
from ffc_ds.launching import lives
from ffc_ds.progress import say

NAME = "run.lock"
SIGN_OF_LIFE = 10.0  # seconds from one to the next
SILENCE = 45.0  # seconds without one, after which a process on another host is taken to be gone


class RunLock:
    """Held by this process from now until `release`, or until it ends. Raises UserError if another one holds it."""

    def __init__(self, folder: Path):
        self._path, self._over = folder / NAME, threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone() as file:
                _refuse_if_alive(folder, file)
                _write(file, _this_process())
        except OSError as error:
            raise UserError(f"output_dir {folder} cannot be written to: {error.strerror}.") from None
        threading.Thread(target=self._live, daemon=True).start()

    def release(self) -> None:
        """The folder is free for another run."""
        self._over.set()
        with self._alone() as file:
            _write(file, None)

    @contextmanager
    def _alone(self) -> Iterator:
        with self._path.open("a+") as file:
            with suppress(OSError):  # some file systems cannot; the content decides, this is for two starts at once
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _live(self) -> None:
        while not self._over.wait(SIGN_OF_LIFE):
            with suppress(OSError):
                os.utime(self._path)


def _this_process() -> dict:
    with suppress(OSError):
        machine = f"{this_host()} {os.readlink('/proc/self/ns/pid')}"
        return {"host": socket.gethostname(), "machine": machine, **_numbers(psutil.Process())}
    return {"host": socket.gethostname(), "machine": socket.gethostname(), **_numbers(psutil.Process())}


def _numbers(process: psutil.Process) -> dict:
    return {"pid": process.pid, "started": process.create_time()}


def _refuse_if_alive(folder: Path, file) -> None:
    file.seek(0)
    try:
        holder = json.loads(file.read() or "null")
    except ValueError:  # cut off by a full disk, or not ours
        holder = None
    if not isinstance(holder, dict) or not {"host", "machine", "pid", "started"} <= holder.keys():
        return
    here = holder["machine"] == _this_process()["machine"]
    if _is_there(holder) if here else _shows_signs(folder / NAME, holder):
        raise UserError(
            f"output_dir {folder} is being written to by process {holder['pid']} on {holder['host']}, a run or what is "
            "left of one. Wait for it or stop it, or choose another --output_dir."
        )


def _is_there(holder: dict) -> bool:
    try:
        process = psutil.Process(holder["pid"])
    except psutil.Error:
        return False
    return lives(process) and abs(process.create_time() - holder["started"]) < 2  # it moves with the clock


def _shows_signs(path: Path, holder: dict) -> bool:
    say(f"{path} is held by a process on {holder['host']}: waiting up to {SILENCE:.0f} s for a sign of life")
    before, deadline = _changed(path), time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        if _changed(path) != before:
            return True
        time.sleep(min(1.0, SILENCE / 10))
    return False


def _changed(path: Path) -> int:
    with path.open() as file:  # a network file system asks its server when a file is opened
        return os.fstat(file.fileno()).st_mtime_ns


def _write(file, holder: dict | None) -> None:
    file.truncate(0)
    file.write(json.dumps(holder) if holder else "")
