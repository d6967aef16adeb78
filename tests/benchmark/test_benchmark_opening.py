"""Opening a dataset: what is measured is the memory of a process and a rate, and lands on a page."""

import json
import os

import numpy as np
import pytest

from ffc_ds.benchmark.opening import _in_child, run_opening
from ffc_ds.errors import UserError

held = []


def hold(mib):
    held.append(np.ones(mib << 17))


def test_memory_of_a_process_is_seen():
    small, large = (_in_child(hold, mib)[0] for mib in (10, 60))
    assert 45 < large - small < 55 and small < 15


def test_a_process_that_is_killed_is_told():
    with pytest.raises(UserError, match="ended with code 3 and no result"):
        _in_child(os._exit, 3)


def test_the_page_and_its_numbers(tmp_path):
    run_opening((3e4,), 16, str(tmp_path))
    found = json.loads((tmp_path / "opening.json").read_text())
    assert found["memory"].keys() == {"30000"} and all(rate > 0 for rate in found["first"].values())
    page = (tmp_path / "opening.md").read_text()
    assert "| 30,000 |" in page and "| ffc_ds, " in page and "launch/benchmark.py" in page
