"""DeepSpeed's launcher, its own code, with processes that are forked where it would start Python anew: as many, in the
same places, in a fraction of the time. For a process that has imported everything and has no threads."""

import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import psutil

from tests.warm import ROOT

POPEN = subprocess.Popen


class Forked:
    """A line `python [-u] [-m] what arguments` in a process; as much of `subprocess.Popen` as the launcher needs.

    log: a file that takes what it writes, also for those that it forks; then it leads a session of its own.
    """

    def __init__(self, line: list[str], env: dict[str, str], log: Path | None = None):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(line, env, log)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self) -> int:
        return self._ended(0)

    def _ended(self, how: int) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def _become(line: list[str], env: dict[str, str], log: Path | None) -> None:
    code = 0
    try:
        if log is not None:
            os.setsid()
            for stream in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            os.chdir(ROOT)
        os.environ.clear()
        os.environ.update(env)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        what = [word for word in line[1:] if word not in ("-u", "-m")]
        sys.argv = what
        if "-m" in line[:3]:
            subprocess.Popen = _popen
            runpy.run_module(what[0], run_name="__main__", alter_sys=True)
        else:
            subprocess.Popen = POPEN
            _be_below_a_launcher()
            runpy.run_path(what[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


def _popen(line: list[str], *others, **how):
    return Forked(line, **how) if line[0] == sys.executable else POPEN(line, *others, **how)


def _be_below_a_launcher() -> None:
    """Forked processes all bear the same name, by which a rank would not know its launchers."""
    from ffc_ds import launching
    from ffc_ds.training import preemption, watchdog

    above = psutil.Process().parents()[:2]
    launching.launchers = preemption.launchers = lambda: above
    watchdog.PAUSE, watchdog.MARGIN = 0.5, 6.0
