"""Class state made of features before the first step, by every head."""

import numpy as np
import pytest
import torch

from ffc_ds.errors import UserError
from ffc_ds.heads import build

PEOPLE, DIM, ROWS = 40, 8, 4
HEADS = {"full_fc": {}, "partial_fc": {}, "ffc": {}, "ffc, lru": {"pool": "lru"}}


def head_of(name):
    head = build(name.partition(",")[0], PEOPLE, DIM, ROWS, **HEADS.get(name, {}))
    return head, [shard.local for shard in head.shards().values()][0]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("bad", [0.0, 1e25, float("nan"), float("inf")])
def test_rows_without_a_direction_are_left_out(name, bad):
    features = torch.randn(3, DIM)
    features[1] = bad
    (head, state), (other, expected) = head_of(name), head_of(name)
    head.prefill(np.array([5, 6, 7]), features)
    other.prefill(np.array([5, 7]), features[::2])
    assert torch.equal(state, expected)


@pytest.mark.parametrize("name", HEADS)
def test_of_no_usable_row_nothing_is_made(name):
    head, state = head_of(name)
    before = state.clone()
    head.prefill(np.array([5]), torch.full((1, DIM), torch.nan))
    head.prefill(np.arange(0), torch.empty(0, DIM))
    assert torch.equal(state, before)


def test_anchors_are_not_made_of_features():
    head = build("virtual_fc", PEOPLE, DIM, ROWS, group_identities=4)
    before = head.weights.clone()
    head.prefill(np.arange(PEOPLE), torch.randn(PEOPLE, DIM))
    assert torch.equal(head.weights, before)


def test_sub_centers_are_not_made_of_features():
    head = build("full_fc", PEOPLE, DIM, ROWS, sub_centers=3)
    with pytest.raises(UserError, match="head.sub_centers must be 1"):
        head.prefill(np.arange(PEOPLE), torch.randn(PEOPLE, DIM))
