"""A run that is continued on more people and under another head, through the launcher."""

import numpy as np
import pyarrow.parquet as pq

from tests.launched import class_state, launch, train_tiny

SHORT = ("--train.steps", "1", "--head.dtype", "bfloat16")


def by_name(checkpoint):
    """Class state of each identity."""
    state = class_state(checkpoint)
    names = pq.read_table(checkpoint / "identities.parquet")["identity"].to_pylist()
    return {name: (state["head.weights"][row], state["head.velocity"][row]) for row, name in enumerate(names)}


def test_more_people_and_all_classes_late(tmp_path):
    young, grown = tmp_path / "young", tmp_path / "grown"
    train_tiny(2, young, "--head.name", "partial_fc", *SHORT)
    more = ("--head.name", "full_fc", "--data.train", "generated:80:32", *SHORT, "--head.init", "features")
    more += ("--train.on_divergence", "rewind")  # which saves before the first step
    done = train_tiny(1, grown, *more, "--head.weights", str(young), start=launch)
    assert "60 identities kept with velocity, 20 new, 0 dropped" in done.stdout
    assert "warning: identities are numbers" in done.stdout
    before, after = by_name(young / "checkpoints" / "step-1"), by_name(grown / "checkpoints" / "step-0")
    assert len(before) == 60 and len(after) == 80
    for name, (weights, velocity) in after.items():
        if name in before:
            np.testing.assert_array_equal(weights, before[name][0])
            np.testing.assert_array_equal(velocity, before[name][1])
        else:
            np.testing.assert_allclose(np.linalg.norm(weights), 0.04, rtol=1e-2)
            assert not velocity.any()
    young.rename(tmp_path / "elsewhere")  # who resumes does not need it
    resumed = train_tiny(2, grown, *more, "--head.weights", str(young), "--resume", "latest", "--train.steps", "2")
    assert "kept" not in resumed.stdout
