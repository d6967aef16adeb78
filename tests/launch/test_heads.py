"""Every system through the launcher, on two ranks; class weights go on from a checkpoint bit for bit."""

import numpy as np
import pytest

from tests.launched import class_state, losses, metrics, train_tiny

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


def test_metric_learning_runs_to_the_end(tmp_path):
    train_tiny(2, tmp_path, "--head.name", "metric", *IMAGES, "--train.steps", "3")
    assert len(losses(tmp_path)) == 3 and np.isfinite(losses(tmp_path)).all()
