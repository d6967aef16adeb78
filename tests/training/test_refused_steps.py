"""How refused steps are counted."""

from pathlib import Path

import pytest

from ffc_ds.config.settings import TrainConfig
from ffc_ds.errors import UserError
from ffc_ds.training.divergence import Diverged, Divergence


def test_steps_in_which_fp16_looks_for_its_scale_do_not_count():
    divergence = Divergence(TrainConfig(max_refused_steps=3))
    for done in range(1, 41):
        divergence.count(done, applied=False, looks_for_scale=True)
        divergence.check(last=True)
    for done in (41, 42):
        divergence.count(done, applied=False, looks_for_scale=False)
        divergence.check(last=False)
    with pytest.raises(Diverged, match="2 steps in a row were refused"):
        divergence.check(last=True)
    divergence.count(43, applied=False, looks_for_scale=False)
    with pytest.raises(Diverged, match="3 steps in a row were refused"):
        divergence.check(last=False)
    divergence.count(44, applied=True, looks_for_scale=False)
    divergence.check(last=True)
    assert divergence.refused == 43 and divergence.refusing is None


def test_a_run_without_a_checkpoint_of_its_own_can_go_on_from_that_it_began_with(tmp_path):
    for start, advice in ((None, "start anew"), (Path("src/step-3"), "--resume src/step-3 and a lower --optim.lr")):
        with pytest.raises(UserError, match=advice):
            Divergence(TrainConfig(), start).go_back(Diverged("it has"), 8, tmp_path, 0.1)
