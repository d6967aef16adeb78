"""One start of a run, through DeepSpeed's launcher, until nothing is left of it."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from ffc_ds.launching import lives
from ffc_ds.training.checkpoints import complete
from ffc_ds.training.finished import is_finished
from ffc_ds.training.tracking import read_metrics
from tests.launched import ROOT, command, environment
from tests.soak.forked import Forked
from tests.soak.kinds import RHYTHM, Kind


class Life:
    """folder: of the run. forked: whether its processes are forked (forked.py) or started as a user's are."""

    def __init__(self, folder: Path, log: Path, kind: Kind, forked: bool, *arguments: str):
        self.folder, self.log, self._metrics, self.forked = folder, log, folder / "metrics.jsonl", forked
        self._earlier = self._number()
        line = command(kind.world, *kind.settings(), *RHYTHM, "--output_dir", str(folder), *arguments)
        self.done_before = max([0, *(step for step, _ in complete(folder / "checkpoints"))])
        if forked:
            self._process = Forked(line, environment(), log)
        else:
            with log.open("w") as file:
                streams = {"stdout": file, "stderr": file, "start_new_session": True}
                self._process = subprocess.Popen(line, cwd=ROOT, env=environment(), **streams)
        self.pid, self.begin = self._process.pid, time.monotonic()

    def launchers(self) -> list[psutil.Process]:
        """Both processes of DeepSpeed's launcher, as far as they are there."""
        with suppress(psutil.Error):
            first = psutil.Process(self.pid)
            return [first, *first.children()[:1]]
        return []

    def ranks(self) -> list[psutil.Process]:
        with suppress(psutil.Error, IndexError):
            return sorted(self.launchers()[1].children(), key=lambda each: each.pid)
        return []

    def code(self) -> int | None:
        """Of the launcher, as a shell sees it; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def everybody(self) -> list[psutil.Process]:
        """All processes of this life: those of its session, whoever their parents are."""
        found = []
        for pid in psutil.pids():
            with suppress(psutil.Error, OSError):
                if os.getsid(pid) == self.pid and lives(process := psutil.Process(pid)):
                    found.append(process)
        return found

    def is_gone_within(self, seconds: float) -> float | None:
        """The seconds until that; None if it lasted too long, and what is left is killed."""
        begin = time.monotonic()
        while (self.code() is None or self.everybody()) and time.monotonic() < begin + seconds:
            time.sleep(0.05)
        took = time.monotonic() - begin
        left = self.everybody()
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self._process.wait()
        return None if left else took

    def text(self) -> str:
        """What all of its processes have written."""
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict]:
        """Those of metrics.jsonl, once this life has made it its own."""
        return read_metrics(self._metrics) if self.has_opened_its_log() else []

    def has_opened_its_log(self) -> bool:
        return self._number() != self._earlier

    def step(self) -> int:
        """The last one that this life, or one before it, has logged; 0 before it has opened the log."""
        return max([0, *(line["step"] for line in self.lines() if "loss" in line)])

    def _number(self) -> int | None:
        return self._metrics.stat().st_ino if self._metrics.exists() else None

    def saving(self) -> list[str]:
        return [path.name for path in (self.folder / "checkpoints").glob(".step-*.unfinished")]

    def is_finished(self) -> bool:
        return is_finished(self.folder)

    def was_saved(self) -> bool:
        """Whether the run was stopped, and has a checkpoint of the step where it was."""
        with suppress(OSError, ValueError):
            results = json.loads((self.folder / "results.json").read_text())
            return results["preempted"] and results["steps"] == complete(self.folder / "checkpoints")[-1][0]
        return False
