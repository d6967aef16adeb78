"""A signal that passes by the launcher, played by processes that are no more than their arguments."""

import signal
import subprocess
import sys

import pytest

from tests.launched import ROOT

LAUNCHER = """
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, sys.argv[1], f"--local_rank={rank}"]) for rank in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
RANK = """
import signal, sys, time
def saved(number, _):
    time.sleep(0.2)
    print(f"{sys.argv[1]} {signal.Signals(number).name}\\n", end="", flush=True)  # two ranks, one write each
    sys.exit(130 if number == signal.SIGINT else 0)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, saved)
print("ready\\n", end="", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "passed_on", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 75),
        (signal.SIGUSR1, signal.SIGUSR1, 75),
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGHUP, signal.SIGTERM, 75),
    ],
)
def test_ranks_get_the_signal_and_their_launcher_does_not(tmp_path, number, passed_on, code):
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK)
    line = [sys.executable, "launch/preemptible.py", "--code", "75", sys.executable, str(tmp_path / "launcher.py")]
    process = subprocess.Popen(
        [*line, str(tmp_path / "rank.py")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also under nohup
    )
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(number)
    said = process.communicate(timeout=60)[0].splitlines()
    assert sorted(said) == [f"--local_rank={rank} {passed_on.name}" for rank in range(2)]
    assert process.returncode == code


STARTING = """
import os, signal, subprocess, sys
sys.path.insert(0, "launch")
import preemptible

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))  # before anybody knows the launcher

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup
before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
subprocess.Popen = Popen
print(preemptible.main(["sleep", "60"], 75))
try:
    preemptible.main(["/no/such/launcher"], 75)
except FileNotFoundError:
    print([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before)
    print(signal.getsignal(signal.SIGUSR1).name)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_while_the_launcher_is_started_ends_it(name):
    line = [sys.executable, "-c", STARTING, name]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout.split()) == (0, [str(128 + signal.SIGTERM), "True", "SIG_IGN"]), done.stderr


def test_a_command_that_ends_by_itself_and_none():
    line = [sys.executable, "launch/preemptible.py"]
    assert subprocess.run([*line, "--code", "75", "true"], cwd=ROOT).returncode == 0
    assert subprocess.run([*line, "false"], cwd=ROOT).returncode == 1
    for asked in ("--code", "--help"):
        help_asked = subprocess.run([*line, asked], cwd=ROOT, capture_output=True, text=True)
        assert help_asked.returncode == 1 and "[--code N] deepspeed launch/train.py" in help_asked.stderr
    unknown = subprocess.run([*line, "deepsped"], cwd=ROOT, capture_output=True, text=True)
    assert (unknown.returncode, unknown.stderr) == (127, "deepsped cannot be started: No such file or directory\n")
