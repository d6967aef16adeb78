"""Ranks that were given different settings."""

import pytest

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError
from ffc_ds.training.agreement import check_same_settings
from tests.ranks import run_ranks


def different_heads():
    config = Config(output_dir=f"runs/{rank()}")
    check_same_settings(config)
    config.head.name = ("ffc", "full_fc")[rank()]
    with pytest.raises(UserError, match="head.name is full_fc on rank 1 and ffc on rank 0") as caught:
        check_same_settings(config)
    return caught.value.shared


def test_a_setting_that_differs_is_named_on_all_ranks():
    assert run_ranks(2, different_heads) == [True, True]
