"""A run whose steps are refused: it stops while the last good checkpoint is there, or goes back to it by itself."""

import json

import numpy as np

from tests.launched import TINY, losses, metrics, train, train_tiny

ZERO0 = ("--deepspeed", "ds_configs/zero0.json")


def diverges(world, folder, *arguments):
    done = train(world, *TINY, "--output_dir", str(folder), "--optim.lr", "1e6", *ZERO0, *arguments)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr[-3000:]
    assert not (folder / "model").exists() and not (folder / "results.json").exists()
    return done


def test_refused_steps_stop_the_run_and_leave_the_last_checkpoint(tmp_path):
    often = ("--train.checkpoint_every", "2", "--train.keep_checkpoints", "1", "--train.max_refused_steps", "5")
    done = diverges(2, tmp_path, "--train.steps", "40", *often)
    assert "step 3 is refused" in done.stdout
    for word in ("5 steps in a row were refused, step 3 first", f"--resume {tmp_path}/checkpoints/step-2", "optim.lr"):
        assert word in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    assert [line["refused_steps"] for line in metrics(tmp_path) if "loss" in line] == [0, 0, 1, 2, 3, 4, 5]


def test_embeddings_that_are_not_finite_end_the_run(tmp_path):
    done = diverges(1, tmp_path, "--train.steps", "2")
    assert "the embeddings are not finite at step 2" in done.stderr and "start anew" in done.stderr


def test_a_run_goes_back_by_itself_and_stays_what_it_is_when_resumed(tmp_path):
    settings = ("--optim.lr", "200", "--optim.schedule", "constant", "--train.steps", "16", *ZERO0)
    settings += ("--train.on_divergence", "rewind", "--train.max_refused_steps", "2", "--train.keep_checkpoints", "9")
    done = train_tiny(2, tmp_path / "run", *settings, "--train.checkpoint_every", "12")
    results, lines = json.loads((tmp_path / "run" / "results.json").read_text()), metrics(tmp_path / "run")
    rewinds = results["rewinds"]
    assert 1 <= rewinds <= 3 and results["refused_steps"] == 2 * rewinds
    assert f"goes back to {tmp_path}/run/checkpoints/step-0, time 1 of at most 3" in done.stdout
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 17)) and np.isfinite(losses(tmp_path / "run")).all()
    assert {(line["lr"], line["rewinds"]) for line in trained} == {(200 / 2**rewinds, rewinds)}
    train_tiny(2, tmp_path / "on", *settings, "--resume", str(tmp_path / "run" / "checkpoints" / "step-12"))
    assert metrics(tmp_path / "on") == [line for line in lines if line["step"] > 12]
    train_tiny(2, tmp_path / "low", *settings, "--optim.lr", str(200 / 2**rewinds), "--train.steps", "1")
    assert losses(tmp_path / "low") != losses(tmp_path / "run")[:1]  # its batches were others
