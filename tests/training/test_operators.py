"""Builds of operators by real processes with a compiler that can be held up, in a folder of their own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.launched import ROOT

BUILD = """
    import sys
    from torch.utils import cpp_extension
    from ffc_ds.training import operators
    if sys.argv[1] == "watched":
        operators.watch_builds()
        operators.SILENT = 0.2
    folder = sys.argv[2]
    cpp_extension.load("answer", [f"{folder}/answer.cpp"], build_directory=f"{folder}/answer", is_python_module=False)
    print("built")
"""
COMPILER = """\
#!/bin/sh
# Compiles an object file only when it may.
case "$*" in *" -c "*)
    echo compiling >> {folder}/journal
    while [ -e {folder}/held ]; do sleep 0.05; done
esac
exec c++ "$@"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "answer").mkdir()
    (tmp_path / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    (tmp_path / "compiler").write_text(COMPILER.format(folder=tmp_path))
    (tmp_path / "compiler").chmod(0o755)
    yield tmp_path
    while started:
        started.pop().kill()


started = []


def build(folder: Path, kind="watched", **env) -> subprocess.Popen:
    line = [sys.executable, "-c", textwrap.dedent(BUILD), kind, str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CXX": str(folder / "compiler"), "PYTHONUNBUFFERED": "1"} | env
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # ninja's
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started.append(subprocess.Popen(line, env=env, cwd=ROOT, start_new_session=True, **pipes))
    return started[-1]


def compilations(folder: Path) -> int:
    journal = folder / "journal"
    return len(journal.read_text().split()) if journal.exists() else 0


def first_words(process: subprocess.Popen) -> str:
    """A torch for GPUs says first that there is none."""
    return next(line for line in process.stdout if "CUDA" not in line)


def last_words(process: subprocess.Popen) -> str:
    lines = process.communicate(timeout=60)[0].splitlines(keepends=True)
    return "".join(line for line in lines if "CUDA" not in line)


def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_killed_build_is_taken_over(folder):
    (folder / "held").touch()
    killed = build(folder)
    until(lambda: compilations(folder) == 1)
    killed.kill()
    killed.wait()
    assert (folder / "answer" / "lock").exists()  # torch's own would wait for it for ever
    os.killpg(killed.pid, signal.SIGKILL)  # the compiler too
    (folder / "held").unlink()
    said, _ = build(folder).communicate(timeout=60)
    assert said.endswith("built\n")
    assert compilations(folder) == 2
    assert last_words(build(folder, kind="plain")) == "built\n"  # nobody is held up any more


def test_of_two_processes_one_compiles_and_both_say_so_while_it_lasts(folder):
    (folder / "held").touch()
    first, second = build(folder), build(folder)
    other_rank = build(folder, LOCAL_RANK="1")
    words = [first_words(first), first_words(second)]
    (folder / "held").unlink()
    assert [last_words(process) for process in (first, second, other_rank)] == ["built\n"] * 3
    assert all(
        text.startswith("compiling the operator answer, a minute or two, once on this machine,") for text in words
    )
    assert compilations(folder) == 1


def test_a_build_of_another_program_is_waited_for(folder):
    (folder / "held").touch()
    stranger = build(folder, kind="plain")
    until(lambda: compilations(folder) == 1)
    ours = build(folder)
    assert first_words(ours).startswith("compiling the operator answer")
    assert compilations(folder) == 1
    (folder / "held").unlink()
    assert [last_words(process) for process in (stranger, ours)] == ["built\n"] * 2
    assert compilations(folder) == 1
