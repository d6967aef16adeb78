"""What DeepSpeed's launcher leaves of the environment, played by processes that bear its name; how a rank ends."""

import os
import subprocess
import sys
import time

import pytest

from tests.launched import ROOT
from tests.warm import Call, environment, run_warm

LAUNCHER = """
import os, subprocess, sys
given, chosen, left = os.environ.pop("CUDA_VISIBLE_DEVICES", None), sys.argv[1], int(sys.argv[2])
if left:  # the first of the two processes of the launcher takes the variable away, the second one sets it
    line = [sys.executable, __file__, chosen, str(left - 1)]
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen
    line = [sys.executable, "-c", "from ffc_ds.launching import overruled_devices; print(overruled_devices())"]
subprocess.run(line, check=True)
"""


@pytest.mark.parametrize(
    ("name", "given", "chosen", "said"),
    [
        ("deepspeed", "2,3", "0,1", "CUDA_VISIBLE_DEVICES=2,3 is overruled by the launcher, which chose 0,1: tell it"),
        ("deepspeed", "2,3", "2,3", "None"),
        ("deepspeed", "", "0,1", "None"),
        ("deepspeed", None, "0,1", "None"),
        ("another_launcher", "2,3", "0,1", "None"),
    ],
)
def test_visible_devices_that_the_launcher_does_not_heed(tmp_path, name, given, chosen, said):
    (tmp_path / name).write_text(LAUNCHER)
    env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    env |= {"PYTHONPATH": str(ROOT)} | ({} if given is None else {"CUDA_VISIBLE_DEVICES": given})
    line = [sys.executable, str(tmp_path / name), chosen, "1"]
    done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said)


ABORTS_AT_THE_END = """
import atexit, os
from ffc_ds.launching import run_for_user
atexit.register(os.abort)
run_for_user(lambda: print("done"))
"""


@pytest.mark.parametrize(("rank", "code"), [({"WORLD_SIZE": "2"}, 0), ({}, -6)])
def test_a_rank_that_is_done_does_not_fail_while_it_is_taken_down(rank, code):
    env = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"} | rank
    done = subprocess.run([sys.executable, "-c", ABORTS_AT_THE_END], env=env, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "done\n")


IGNORED = "import signal, subprocess, sys; signal.signal(signal.SIGUSR1, signal.SIG_IGN); subprocess.run(sys.argv[1:])"
HEEDS = "import signal; from ffc_ds.launching import run_for_user; run_for_user(lambda: print(signal.getsignal(10)))"


def test_a_signal_that_the_launcher_was_made_to_ignore_ends_a_rank_that_has_not_begun():
    line = [sys.executable, "-c", IGNORED, sys.executable, "-c", HEEDS]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout == "0\n"  # SIG_DFL


REFUSES = """
from ffc_ds.errors import shared
from ffc_ds.launching import run_for_user

def main():
    raise shared("only here")

run_for_user(main)
"""


@pytest.mark.parametrize(("place", "said"), [(("1", "0"), True), (("1", "1"), False), (("0", "0"), True)])
def test_before_ranks_have_met_each_host_says_what_is_wrong_there(place, said):
    env = os.environ | dict(zip(("RANK", "LOCAL_RANK"), place, strict=True)) | {"WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", REFUSES], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == ("\nerror: only here\n\n" if said else "")


def without_memory():
    import torch

    from ffc_ds.launching import run_for_user

    def main():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4 GiB"
        )

    run_for_user(main)


def test_a_gpu_without_memory_left_is_no_defect():
    (ended,) = run_warm([Call(without_memory, (), environment())])
    assert ended.code == 2 and "Traceback" not in ended.stderr
    assert "error: CUDA out of memory. Tried to allocate 2.00 GiB. What helps: train.accumulation" in ended.stderr


IMPORTED = """
import sys
if sys.argv[1] == "before":
    import datasets
from ffc_ds.launching import run_for_user

def main():
    print("datasets" in sys.modules)
    import datasets, huggingface_hub
    print(datasets.are_progress_bars_disabled(), huggingface_hub.utils.are_progress_bars_disabled())

run_for_user(main)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_redirected_log_has_no_bars_whenever_libraries_are_imported(when):
    line = [sys.executable, "-c", IMPORTED, when]
    env = {key: value for key, value in os.environ.items() if "PROGRESS_BARS" not in key}
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(when == "before"), "True", "True"] and not done.stderr


ORPHAN = """
import signal, sys, time
from ffc_ds.launching import run_for_user
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("asked to end", flush=True)))
run_for_user(lambda: [print("running", flush=True), time.sleep(60)])
"""
PARENT = """
import subprocess, sys
below = [__file__, sys.argv[1], "last"] if sys.argv[2] == "first" else [sys.argv[1]]
subprocess.run([sys.executable, *below])
"""


def test_a_rank_whose_launcher_is_killed_is_asked_to_end(tmp_path):
    (tmp_path / "deepspeed").write_text(PARENT)
    (tmp_path / "rank.py").write_text(ORPHAN)
    line = [sys.executable, str(tmp_path / "deepspeed"), str(tmp_path / "rank.py"), "first"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "running\n"
        launcher.kill()  # the first of two: the other one, which is the parent of the rank, goes on
        assert launcher.stdout.readline() == "asked to end\n"


LATE = f"""
import os, sys, time
for _ in range(500):
    if os.getppid() == 1:
        break
    time.sleep(0.01)
else:
    sys.exit(print("adopted by another process", flush=True))
{ORPHAN}
"""


def test_a_rank_whose_launcher_was_gone_before_it_began_is_asked_to_end(tmp_path):
    said = tmp_path / "said"
    (tmp_path / "rank.py").write_text(LATE)
    line = f"exec {sys.executable} {tmp_path / 'rank.py'} > {said} 2>&1"
    env = os.environ | {"PYTHONPATH": str(ROOT), "LOCAL_SIZE": "1"}
    subprocess.run(["sh", "-c", f"({line}) &"], env=env, check=True)
    deadline = time.monotonic() + 50
    while not said.exists() or said.read_text() in ("", "running\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if said.read_text().startswith("adopted"):
        pytest.skip("orphans do not go to process 1 here")
    assert said.read_text().endswith("asked to end\n")
