"""Scripts run in processes that are forked from one which has imported everything: real ones, without the seconds that
imports take. A line of JSON in starts a process, a line of JSON out says how it ended.

Run as a module it is that process; `WarmProcesses` is its client.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class WarmProcesses:
    """Starts `python script arguments` with an environment, for several processes at once, and waits for all."""

    def __init__(self, environment: dict[str, str]):
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "bufsize": 0,
        }  # a buffer would hide lines from select
        line = [sys.executable, "-m", "tests.warm"]
        self._server = subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True, **pipes)

    def run(self, jobs: list[dict], timeout: float) -> list[int]:
        """Exit codes of the jobs {script, arguments, environment, stdout, stderr}, the last two paths."""
        for number, job in enumerate(jobs):
            self._server.stdin.write(json.dumps(job | {"number": number}).encode() + b"\n")
        codes, deadline = {}, time.monotonic() + timeout
        while len(codes) < len(jobs):
            if not select.select([self._server.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                self.close()
                raise subprocess.TimeoutExpired([job["script"] for job in jobs], timeout)
            ended = json.loads(self._server.stdout.readline())
            codes[ended["number"]] = ended["code"]
        return [codes[number] for number in range(len(jobs))]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()


def _serve() -> None:
    import ffc_ds.training.trainer  # noqa: F401 (what takes long)

    running = {}
    while True:
        if select.select([0], [], [], 0.02)[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            job = json.loads(line)
            if (child := os.fork()) == 0:
                _become(job)
            running[child] = job["number"]
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                print(json.dumps({"number": running.pop(child), "code": os.waitstatus_to_exitcode(status)}), flush=True)


def _become(job: dict) -> None:
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = [job["script"], *job["arguments"]]
    code = 0
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
