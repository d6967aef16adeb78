"""Whole runs through the launcher: the same numbers on any number of ranks, under any ZeRO, and after a kill."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from transformers import AutoModel

import ffc_ds.models  # noqa: F401 (registers the backbones)
from tests.launched import (
    ROOT,
    TINY,
    class_state,
    command,
    environment,
    free_port,
    launch,
    losses,
    metrics,
    train_tiny,
)
from tests.umask import more_private_than_the_umask

STEPS = 10
FAST_GALLERY = ("--head.gallery_momentum", "0.5", "--optim.lr", "0.02")  # so that a gallery that stands still shows
FAST_GALLERY += (
    "--head.pool",
    "lru",
    "--data.crop",
    "0.2",
    "--data.erase",
    "0.5",
)  # the same on any number of ranks, and after a kill
CASES = {"zero2 on 2": (2, 2), "zero2 on 1": (1, 2), "zero2 on 3": (3, 2)} | {
    f"zero{stage} on 2": (2, stage) for stage in (0, 1, 3)
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (world, stage) in CASES.items():
        tracking = {"WANDB_MODE": "offline"} if world == 1 else {}
        train_tiny(
            world,
            folder / name,
            *("--train.steps", str(STEPS), "--train.checkpoint_every", "3"),
            *(
                "--train.keep_checkpoints",
                "9",
                "--train.log_every",
                "2",
                *FAST_GALLERY,
                "--deepspeed",
                f"ds_configs/zero{stage}.json",
            ),
            **tracking,
        )
    return folder


@pytest.mark.parametrize("name", [name for name in CASES if name != "zero2 on 2"])
def test_ranks_and_zero_stages_give_the_same_losses_pool_and_gallery(runs, name):
    np.testing.assert_allclose(losses(runs / name), losses(runs / "zero2 on 2"), rtol=2e-4)
    found = class_state(runs / name / "checkpoints" / f"step-{STEPS}")
    expected = class_state(runs / "zero2 on 2" / "checkpoints" / f"step-{STEPS}")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_training_moves_probe_gallery_and_pool(runs):
    first, last = (class_state(runs / "zero3 on 2" / "checkpoints" / f"step-{step}") for step in (3, STEPS))
    moved = {key for key in first if not np.array_equal(first[key], last[key])}
    assert "head.pool" in moved
    still = {key for key in first if key.startswith("gallery.average")} - moved
    assert not still
    assert len(set(losses(runs / "zero3 on 2"))) == STEPS // 2


def test_killed_and_resumed_equals_uninterrupted(runs, tmp_path):
    arguments = [
        *TINY,
        *("--output_dir", str(tmp_path / "run"), "--deepspeed", "ds_configs/zero2.json"),
        *("--train.steps", str(STEPS), "--train.checkpoint_every", "3", "--train.keep_checkpoints", "9"),
        *("--train.log_every", "2", *FAST_GALLERY),
    ]
    process = subprocess.Popen(
        command(2, *arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first = tmp_path / "run" / "checkpoints" / random.choice(["step-3", "step-6"])
    deadline = time.monotonic() + 240
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert first.exists()
    time.sleep(random.uniform(0, 0.3))
    assert not (tmp_path / "run" / "results.json").exists()
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.send_signal(signal.SIGKILL)
    process.wait()
    again = (*arguments[len(TINY) + 2 :], "--resume", "latest")
    done = train_tiny(2, tmp_path / "run", *again, start=launch, CUDA_VISIBLE_DEVICES="7")
    assert "CUDA_VISIBLE_DEVICES=7 is overruled by the launcher, which chose 0,1" in done.stdout
    assert done.stdout.count("CUDA_VISIBLE_DEVICES=7 is overruled") == 1
    assert metrics(tmp_path / "run") == metrics(runs / "zero2 on 2")


def test_a_run_goes_on_on_other_ranks_under_another_zero_stage(runs, tmp_path):
    earlier = runs / "zero3 on 2" / "checkpoints" / "step-3"
    settings = ("--train.steps", str(STEPS), "--train.log_every", "2", *FAST_GALLERY)
    settings += ("--deepspeed", "ds_configs/zero1.json", "--resume", str(earlier))
    done = train_tiny(3, tmp_path, *settings)
    assert done.stdout.count("other settings than before: train.checkpoint_every 3 -> ") == 1
    np.testing.assert_allclose(losses(tmp_path), losses(runs / "zero3 on 2")[1:], rtol=2e-4)
    found, expected = (class_state(f / "checkpoints" / f"step-{STEPS}") for f in (tmp_path, runs / "zero3 on 2"))
    assert found.keys() == expected.keys()
    for key in ("index.identity", "index.order", "index.position"):
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def test_a_run_can_end_at_a_checkpoint_and_lives_on_elsewhere(runs, tmp_path):
    earlier = runs / "zero2 on 1" / "checkpoints" / "step-3"
    arguments = ("--deepspeed", "ds_configs/zero2.json", *FAST_GALLERY, "--resume", str(earlier), "--train.steps", "3")
    train_tiny(1, tmp_path, *arguments, WANDB_MODE="offline")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 3 and 0 <= results["trained"]["accuracy"] <= 1 and (tmp_path / "roc.png").is_file()
    ids = [
        {path.stem for path in folder.glob("wandb/offline-run-*/*.wandb")} for folder in (tmp_path, earlier.parents[1])
    ]
    assert all(ids) and not ids[0] & ids[1]


def test_a_finished_run_leaves_model_results_and_figures(runs):
    folder = runs / "zero3 on 2"
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == STEPS and results["world_size"] == 2
    assert 0 <= results["trained"]["accuracy"] <= 1 and results["config"]["seed"] == 0 and results["versions"]["torch"]
    assert more_private_than_the_umask(folder) == []
    for name in ("learning_curve.png", "roc.png", "config.yaml", "model/model.safetensors"):
        assert (folder / name).stat().st_size > 0
    model = AutoModel.from_pretrained(folder / "model")
    other = AutoModel.from_pretrained(runs / "zero2 on 2" / "model")
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


def test_without_a_key_wandb_works_offline(runs):
    assert list((runs / "zero2 on 1" / "wandb").glob("offline-run-*/*.wandb"))


def test_other_heads_loaders_optimizers_and_precisions_run_to_the_end(tmp_path):
    softmax = ("--head.name", "full_fc", "--data.loader", "instance", "--train.accumulation", "2", "--optim.clip", "1")
    softmax += ("--optim.name", "adamw", "--optim.lr", "1e-3", "--train.steps", "3")
    port = free_port()
    train_tiny(2, tmp_path / "softmax", *softmax, MASTER_PORT=port)
    assert not list(Path("/dev/shm").glob(f"*_{port}_*"))  # where DeepSpeed would leave 66 MB a rank
    half = ("--deepspeed", "ds_configs/bf16.json", "--data.loader", "id", "--data.workers", "1", "--train.steps", "3")
    net = ("--model.name", "iresnet18", "--model.overrides", "{width: 0.125}", "--head.preset", "f2c")
    train_tiny(2, tmp_path / "half", *half, *net)
    for name in ("softmax", "half"):
        assert np.isfinite(losses(tmp_path / name)).all() and len(losses(tmp_path / name)) == 3
    assert json.loads((tmp_path / "half" / "results.json").read_text())["trained"]["accuracy"] is not None


def test_drawn_centers_are_the_same_on_any_ranks_and_zero_stage_and_after_a_resume(tmp_path):
    """The probe net, sharded or not, makes the first centers and all others, too."""
    steps = "--train.steps", "4", "--train.checkpoint_every", "2", "--train.keep_checkpoints", "3"
    train_tiny(2, tmp_path / "zero3", *steps, "--deepspeed", "ds_configs/zero3.json")
    train_tiny(3, tmp_path / "zero2", *steps, "--deepspeed", "ds_configs/zero2.json")
    np.testing.assert_allclose(losses(tmp_path / "zero3"), losses(tmp_path / "zero2"), rtol=2e-4)
    states = [class_state(tmp_path / name / "checkpoints" / "step-4") for name in ("zero3", "zero2")]
    centers, others = (state["head.weights"] for state in states)
    np.testing.assert_allclose(centers, others, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, rtol=1e-5)  # everybody has one
    earlier = str(tmp_path / "zero3" / "checkpoints" / "step-2")
    train_tiny(2, tmp_path / "again", *steps, "--deepspeed", "ds_configs/zero3.json", "--resume", earlier)
    assert metrics(tmp_path / "again") == [line for line in metrics(tmp_path / "zero3") if line["step"] > 2]
