"""Operators that are compiled when they are first used, as DeepSpeed's are: never silently, and never stuck.

torch before 2.14 lets one process build while others wait until its file `lock` is gone. A process that is killed
leaves the file behind, and then everybody waits for ever. Here the builder also holds a lock of the kernel's, which
ends with it, as torch's own does now.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep

import psutil
from torch.utils import cpp_extension
from torch.utils._filelock import FileLock
from torch.utils.file_baton import FileBaton

from ffc_ds.progress import waiting

SILENT = 2.0  # seconds; an operator that is there already takes less


def watch_builds() -> None:
    """From now on builds of this process say what takes long, and take over what an interrupted one has left."""
    if hasattr(cpp_extension, "FileBaton"):
        cpp_extension.FileBaton = _Baton
    else:
        cpp_extension.FileLock = _spoken_lock


def _saying(lock: Path) -> AbstractContextManager[None]:
    text = f"compiling the operator {lock.parent.name}, a minute or two, once on this machine"
    return waiting(text, SILENT, shown=os.environ.get("LOCAL_RANK", "0") == "0")


@contextmanager
def _spoken_lock(path: str) -> Iterator[None]:
    with _saying(Path(path)), FileLock(path):
        yield


class _Baton(FileBaton):
    """Each process in turn is the builder. All but the first find that there is nothing to do."""

    def try_acquire(self) -> bool:
        lock = Path(self.lock_file_path)
        with ExitStack() as held:
            held.enter_context(_saying(lock))
            builder = held.enter_context(lock.with_name("builder").open("a"))
            with suppress(OSError):  # some file systems cannot
                fcntl.flock(builder, fcntl.LOCK_EX)
            while not super().try_acquire():
                if _in_use(lock):
                    sleep(1)
                else:
                    lock.unlink(missing_ok=True)
            self._held = held.pop_all()
        return True

    def release(self) -> None:
        super().release()
        self._held.close()


def _in_use(lock: Path) -> bool:
    """Whether a process that does not know of our lock builds: while it does, it has the file open."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone, or of somebody else
            if any(file.path == str(lock.resolve()) for file in process.open_files()):
                return True
    return False
