"""Labels that cannot be those of the rows of all ranks are refused by every head."""

import numpy as np
import pytest
import torch

from ffc_ds.errors import UserError
from ffc_ds.heads import build

ROWS, PEOPLE = 4, 40
HEADS = {
    "full_fc": {},
    "partial_fc": {},
    "virtual_fc": {"group_identities": 4},
    "metric": {},
    "ffc": {},
    "ffc, lru": {"pool": "lru", "pool_size": 20},
}


@pytest.mark.parametrize("name", HEADS)
def test_labels_are_whole_numbers_of_all_rows(name):
    head = build(name.partition(",")[0], PEOPLE, 8, ROWS, **HEADS[name])
    probe = torch.randn(2, ROWS, 8, requires_grad=True)
    right = np.arange(2 * ROWS).reshape(2, ROWS)
    wrong = {
        "(2, 2), where features (2, 4, 8) on each of 1 ranks have whole numbers (2, 4)": right[:, :2],
        "labels are int64 (8,)": right.reshape(-1),
        "labels are float32": right.astype(np.float32),
        "labels go from -1 to 6": right - 1,
        "labels go from 33 to 40; identities are numbered from 0 to 39": right + 33,
    }
    for message, labels in wrong.items():
        with pytest.raises(UserError) as caught:
            head.loss(probe, labels)
        assert message in str(caught.value)
    with pytest.raises(UserError, match=r"gallery features are \(2, 5, 8\), and those of the probe \(2, 4, 8\)"):
        head.loss(probe, right, torch.randn(2, ROWS + 1, 8))
    assert head.loss(probe, right)[0].isfinite()


@pytest.mark.parametrize("kind", ["int32", "uint8", "uint64"])
@pytest.mark.parametrize("name", HEADS)
def test_labels_are_whole_numbers_of_any_type(name, kind):
    probe, labels, found = torch.randn(2, ROWS, 8), np.arange(2 * ROWS).reshape(2, ROWS), []
    for each in (labels, labels.astype(kind)):
        head = build(name.partition(",")[0], PEOPLE, 8, ROWS, **HEADS[name])
        found.append(head.loss(probe.requires_grad_(), each)[0])
        head.step(True, 0.1)
    assert found[0] == found[1]
    if kind == "uint64":
        labels = labels.astype(kind) + np.uint64(2**63)
        with pytest.raises(UserError, match="to 9223372036854775815; identities are numbered from 0 to"):
            head.loss(probe, labels)
