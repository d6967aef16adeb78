"""`launch/plan.py` as people run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ("--identities", "100e6", "--images", "1e9", "--gpus", "64", "--backbone", "mobilefacenet")


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch/plan.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def test_all_heads_side_by_side():
    done = plan(*RUN, "--gpu-memory", "4", "--matrix-tflops", "400", "--bandwidth", "100")
    assert done.returncode == 0, done.stderr
    lines = {line.strip().split("  ")[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert lines["fits"] == ["fits", "no", "no", "no", "yes", "no"]
    assert "released code would take" in done.stdout
    for row in ("class state", "activations", "identity index", "images/s at 400 TFLOP/s, at most"):
        assert row in done.stdout
    assert "full_fc does not fit" in done.stdout and "--head.name ffc" not in done.stdout


def test_one_head_at_a_measured_rate():
    done = plan(*RUN, "--gpu-memory", "80", "--head=ffc", "--pool_size", "0.01", "--measure", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    assert "full_fc" not in done.stdout and "images/s at" in done.stdout and "does not fit" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus is 0"),
        (["--gpus", "few"], "gpus"),
        (["--batch-size", "33"], "must be even"),
        (["--zero", "0"], "--dtype bf16 wants --zero 1 or more"),
        (["--backbone", "resnet50"], "iresnet50"),
        (["--head", "fcc"], "fcc"),
        (["--gpu-memry", "80"], "--gpu-memry"),
    ],
)
def test_bad_input_is_one_message(arguments, message):
    done = plan(*RUN, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and message in done.stderr.replace("gpu_memry", "gpu-memry")
    assert "Traceback" not in done.stderr and not done.stdout


def test_a_run_that_so_many_gpus_cannot_share_is_refused():
    done = plan(*RUN[:4], "--gpus", "6", "--config", "launch/recipes/ms1mv3_r50.yaml")
    assert done.returncode == 2 and "data.batch_size 1024 cannot be shared by 6 GPUs" in done.stderr
    assert done.stderr.count("error: ") == 1 and not done.stdout
