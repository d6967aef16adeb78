"""Outputs that are there whole or not at all."""

import pytest

from ffc_ds.errors import UserError
from ffc_ds.files import written_aside


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="out exists already"), written_aside(tmp_path / "out"):
        raise AssertionError("it was to be refused before anything is done")
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("length", [300, 245])  # of which the latter is a name, and no longer one with .unfinished
def test_a_name_that_is_too_long_is_said(tmp_path, length):
    with (
        pytest.raises(UserError, match="cannot be written: .*File name too long"),
        written_aside(tmp_path / ("a" * length)),
    ):
        raise AssertionError("it was to be refused before anything is done")
