"""Bars of a terminal, a real one, and lines of a log."""

import os
import pty
import subprocess
import sys
import termios
import textwrap
from contextlib import suppress

import pytest

from ffc_ds import progress
from tests.launched import ROOT

JOB = """
    from ffc_ds.progress import progress, say
    with progress(desc="write", unit="files", total=3) as bar:
        for number in range(3):
            say(f"file {number}")
            bar.update()
    print(sum(progress(range(4), desc="count", unit="numbers", leave=False, shown=False)))
"""


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when they are told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_every_half_minute(clock, capsys):
    for number, _ in enumerate(progress.progress(range(1200), desc="train", unit="steps", initial=0), 1):
        clock[0] += 1
        if number == 70:
            break
    assert capsys.readouterr().err.splitlines() == [
        # the step under way does not count yet
        "train  30/1,200 steps, 19.5 min left",
        "train  60/1,200 steps, 19.0 min left",
    ]


def test_a_line_counts_from_where_a_resumed_job_began_and_says_what_is_known(clock, capsys):
    with progress.progress(desc="train", unit="steps", total=1000, initial=900) as bar:
        bar.set_postfix({"loss": "1.234", "images/s": "456"})
        clock[0] += 29
        bar.update(10)
        clock[0] += 1
        bar.update(10)
        bar.update(10)
    assert capsys.readouterr().err == "train  920/1,000 steps, 2.0 min left, loss 1.234, images/s 456\n"


def test_a_job_of_seconds_leaves_nothing_in_a_log():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(JOB)], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("file 0\nfile 1\nfile 2\n6\n", "")


def test_a_terminal_has_a_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    line = [sys.executable, "-c", textwrap.dedent(JOB)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        assert process.stdout.read() == "file 0\nfile 1\nfile 2\n6\n"
    os.close(theirs)
    shown = ""
    with suppress(OSError):  # the end, as Linux says it
        while part := os.read(ours, 10_000).decode():
            shown += part
    assert "3/3" in shown and "\r" in shown and "4/4" not in shown


def test_what_takes_long_without_a_count_is_named_again_and_again(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with progress.waiting("opening faces", first=0.01):
        lines = []
        while len(lines) < 2:
            lines += capsys.readouterr().out.splitlines()
    assert all(line.startswith("opening faces, 0 s so far") for line in lines)
    capsys.readouterr()
    with progress.waiting("opening faces", first=60), progress.waiting("opening faces", first=0, shown=False):
        pass
    assert capsys.readouterr().out == ""


FULL = """
    from ffc_ds import progress
    from ffc_ds.launching import run_for_user
    progress.EVERY = 0

    def main():
        progress.say("a line")
        return len(list(progress.progress(range(3), desc="train", unit="steps")))

    run_for_user(main)
"""


def test_a_log_on_a_full_disk_ends_nothing():
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-c", textwrap.dedent(FULL)]
        assert subprocess.run(line, cwd=ROOT, stdout=full, stderr=full).returncode == 3


def test_something_is_said_once_on_the_first_rank(capsys, monkeypatch, tmp_path):
    progress.say_once(f"{tmp_path} one")
    progress.say_once(f"{tmp_path} one")
    monkeypatch.setenv("RANK", "1")
    progress.say_once(f"{tmp_path} two")
    assert capsys.readouterr().out == f"{tmp_path} one\n"
