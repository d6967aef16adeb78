"""A run whose steps are refused: it stops while the last good checkpoint is there, or goes back to it by itself."""

import json
import math
import os

import numpy as np

from tests.launched import TINY, losses, metrics, train, train_ranks, train_tiny
from tests.warm import run_script

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


def test_an_untrained_net_that_is_too_deep_for_its_first_statistics_is_trained(tmp_path):
    """As iresnet100 and 200 are, and in fp16 every iresnet."""
    deep = ("--model.name", "iresnet18", "--model.image_size", "16", "--train.steps", "2", "--train.compile", "off")
    overrides = ("--model.overrides", "{width: 0.25, depth: [1, 1, 130, 1]}")
    done = train(1, *TINY, *deep, *overrides, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 0: the embeddings of the untrained net are not finite" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["untrained"]["accuracy"] is None and results["trained"]["accuracy"] is not None
    assert "verification, at first    the embeddings of the untrained net are not finite" in done.stdout


def _refusing_two_steps(*line):
    """Until the run has gone back twice; it ends there, unless it is resumed."""
    from ffc_ds.training.trainer import Trainer

    loss_of = Trainer._loss

    def loss(trainer, *batch):
        found, parts = loss_of(trainer, *batch)
        if trainer.divergence.rewinds == 2 and not trainer.resumed:
            trainer.saver.wait()
            os._exit(9)
        refused = trainer.done in (12, 13) and trainer.divergence.rewinds < 2
        return found * (math.nan if refused else 1.0), parts

    Trainer._loss = loss
    run_script(*line)


def test_a_run_goes_back_by_itself_and_stays_what_it_is_when_resumed(tmp_path):
    settings = (*TINY, "--optim.lr", "0.2", "--optim.schedule", "constant", "--train.steps", "16", *ZERO0)
    settings += ("--train.on_divergence", "rewind", "--train.max_refused_steps", "2", "--train.checkpoint_every", "12")
    folder = tmp_path / "run"
    line = (*settings, "--output_dir", str(folder), "--resume", "auto")
    first, second = train_ranks(2, *line, how=_refusing_two_steps)
    assert first.code == second.code == 9, first.stderr[-3000:]
    again, _ = train_ranks(2, *line, how=_refusing_two_steps)  # which does not try the same again
    assert again.code == 0, again.stderr[-3000:]
    assert "the run went back 2 times: its learning rate is 0.25 of optim.lr" in again.stdout
    results, lines = json.loads((folder / "results.json").read_text()), metrics(folder)
    assert (results["rewinds"], results["refused_steps"]) == (2, 4)
    # As no step from there could be applied, it goes on from the one before.
    for went in ("step-12, time 1 of at most 3", "step-0, time 2 of at most 3"):
        assert f"goes back to {folder}/checkpoints/{went}" in first.stdout
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 17)) and np.isfinite(losses(folder)).all()
    assert {(line["lr"], line["rewinds"]) for line in trained} == {(0.05, 2)}
    on = str(folder / "checkpoints" / "step-12")
    train_tiny(2, tmp_path / "on", *settings, "--resume", on)
    assert metrics(tmp_path / "on") == [line for line in lines if line["step"] > 12]
    train_tiny(2, tmp_path / "low", *settings, "--optim.lr", "0.05", "--train.steps", "1")
    assert losses(tmp_path / "low") != losses(folder)[:1]  # its batches were others
