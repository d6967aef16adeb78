"""Ranks that were given, have read, or have made something else than the others; and what a resumed run has new."""

import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from ffc_ds.config.comparison import changes
from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError
from ffc_ds.training import agreement
from ffc_ds.training.agreement import agreed_identities, check_same_start, check_same_state
from ffc_ds.training.identity import identity_of
from tests.ranks import run_ranks


@contextmanager
def other_code():
    own = agreement._digest_of_code
    agreement._digest_of_code = lambda: own() + "!" * rank()
    yield
    agreement._digest_of_code = own


def different_starts(folder):
    mine = folder / f"of_rank_{rank()}.json"
    mine.write_text('{"zero_optimization": {"stage": 2}}')
    config = Config(output_dir=f"runs/{rank()}", deepspeed=str(mine))
    check_same_start(config)
    config.head.name = ("ffc", "full_fc")[rank()]
    with pytest.raises(UserError, match="head.name is full_fc on rank 1 and ffc on rank 0") as caught:
        check_same_start(config)
    assert caught.value.shared
    config.head.name = "ffc"
    config.model.name = f"hub:/mounts/{rank()}/dinov2"  # what lies there is compared later
    check_same_start(config)
    config.model.name = ("hub:dinov2", "vit")[rank()]
    with pytest.raises(UserError, match="model.name is vit on rank 1 and hub: on rank 0"):
        check_same_start(config)
    config.model.name = "vit"
    with other_code(), pytest.raises(UserError, match="ffc_ds's own code is .* on rank 1 and .* on rank 0"):
        check_same_start(config)
    mine.write_text(f'{{"zero_optimization": {{"stage": {rank()}}}}}')
    with pytest.raises(UserError, match="zero_optimization.stage in the file of deepspeed is 1 on rank 1 and 0 on"):
        check_same_start(config)
    return True


def test_a_setting_that_differs_is_named_on_all_ranks(tmp_path):
    assert run_ranks(2, different_starts, tmp_path) == [True, True]


def index(*names):
    return IdentityIndex(np.arange(len(names) + 1), np.arange(len(names)), pa.array(names))


def different_data():
    os.environ["LOCAL_RANK"] = "0"  # each on a host of its own
    agreed_identities(index("ann", "bob"))
    with pytest.raises(UserError, match="their images is .* on rank 1 .* on rank 0: give all hosts the same data"):
        agreed_identities(index("ann", ("bob", "eve")[rank()]))
    return True


def test_other_data_on_another_host_is_noticed():
    assert run_ranks(2, different_data) == [True, True]


def different_states():
    head, engine = SimpleNamespace(checksum=lambda: 5), SimpleNamespace(checksum=lambda: 7)
    check_same_state(engine, head, 3)
    engine.checksum = lambda: rank() // 2
    with pytest.raises(UserError, match="the backbone after step 3: rank 2 against the others") as caught:
        check_same_state(engine, head, 3)
    return caught.value.shared


def test_a_rank_that_has_other_weights_is_named():
    assert run_ranks(3, different_states) == [True, True, True]


def test_what_may_change_is_said_and_what_only_another_head_reads_does_not_count():
    before, now = Config(), Config()
    now.optim.lr, now.train.steps, now.output_dir = 0.05, 9, "elsewhere"
    assert changes(asdict(before), now) == ["optim.lr 0.1 -> 0.05", "train.steps None -> 9"]
    engine = SimpleNamespace(optimizer_name="sgd", dtype=torch.float32)
    now.data.flip = False
    flips = [identity_of(config, engine, index("ann"), "").get("data.flip") for config in (before, now)]
    assert flips == [None, False]
    now.data.flip = True
    now.head.sample_rate = 0.5
    assert identity_of(before, engine, index("ann"), "") == identity_of(now, engine, index("ann"), "")
    before.head.name = now.head.name = "partial_fc"
    assert identity_of(before, engine, index("ann"), "") != identity_of(now, engine, index("ann"), "")


def test_what_a_ds_config_says_of_its_optimizer_counts_but_the_learning_rate(tmp_path):
    engine, found = SimpleNamespace(optimizer_name="AdamW", dtype=torch.float32), []
    for number, params in enumerate(({"lr": "auto"}, {"lr": 0.1}, {"lr": 0.1, "betas": [0.9, 0.99]})):
        (tmp_path / f"{number}.json").write_text(json.dumps({"optimizer": {"type": "AdamW", "params": params}}))
        config = Config(deepspeed=str(tmp_path / f"{number}.json"))
        found.append(identity_of(config, engine, index("ann"), ""))
    assert found[0] == found[1] != found[2] and found[2]["optimizer.params"] == {"betas": [0.9, 0.99]}
