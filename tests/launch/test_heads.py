"""Every system through the launcher, on two ranks; class weights go on from a checkpoint bit for bit."""

import json

import numpy as np
import pytest

from tests.launched import ROOT, class_state, losses, metrics, train, train_tiny

QUICKSTART = str(ROOT / "launch" / "recipes" / "quickstart.yaml")
IMAGES = ("--data.loader", "id", "--data.images_per_identity", "4")
WITH_STATE = ("--head.margin", "adaface", "--head.sub_centers", "2")
SYSTEMS = {
    "partial_fc": ("--data.loader", "instance", "--head.sample_rate", "0.3", "--head.dtype", "bfloat16", *WITH_STATE),
    "virtual_fc": (*IMAGES, "--head.group_identities", "2", "--class_optim.name", "adamw", "--optim.lr", "0.001"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_class_weights_go_on_from_a_checkpoint(tmp_path, name):
    settings = ("--head.name", name, *SYSTEMS[name], "--train.steps", "4", "--train.checkpoint_every", "2")
    train_tiny(2, tmp_path / "whole", *settings)
    middle = tmp_path / "whole" / "checkpoints" / "step-2"
    train_tiny(2, tmp_path / "resumed", *settings, "--resume", str(middle))
    expected = [line for line in metrics(tmp_path / "whole") if line["step"] > 2]
    assert [line for line in metrics(tmp_path / "resumed") if line["step"] > 2] == expected
    end = "checkpoints/step-4"
    first, last = class_state(middle), class_state(tmp_path / "whole" / end)
    for key, value in class_state(tmp_path / "resumed" / end).items():
        np.testing.assert_array_equal(value, last[key], err_msg=key)
    assert not np.array_equal(first["head.weights"], last["head.weights"])


@pytest.mark.parametrize("name", ["full_fc", "partial_fc", "virtual_fc", "metric", "ffc"])
def test_a_name_alone_makes_a_sensible_run_of_a_recipe(tmp_path, name):
    small = ("--model.overrides", "{width: 0.125, depth: [1, 1, 1, 1]}", "--train.steps", "100", "--eval.every", "0")
    own = ("--head.group_identities", "10") * (name == "virtual_fc")  # 100 are for larger sets, as its refusal says
    done = train(2, "--config", QUICKSTART, "--head.name", name, *own, *small, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["untrained"]["auc"] < 0.6 and results["trained"]["auc"] > results["untrained"]["auc"] + 0.1


def test_metric_learning_runs_to_the_end(tmp_path):
    train_tiny(2, tmp_path, "--head.name", "metric", *IMAGES, "--train.steps", "3")
    assert len(losses(tmp_path)) == 3 and np.isfinite(losses(tmp_path)).all()
