"""Runs of every head go on under another number of ranks and another ZeRO stage; tests/soak/grid.py has all ways."""

from tests.soak.grid import Move, play
from tests.soak.kinds import Kind

WAYS = {  # ranks and stage before, and after
    "ffc": ((2, 2), (1, 3)),
    "full_fc": ((1, 2), (2, 0)),
    "partial_fc": ((2, 0), (1, 2)),
    "virtual_fc": ((1, 1), (2, 2)),
    "metric": ((2, 3), (1, 0)),
}


def test_every_head_goes_on_on_other_ranks_under_another_stage(tmp_path):
    moves = [Move(*(Kind(head, *each) for each in WAYS[head])) for head in WAYS]
    found = play(moves, tmp_path)
    assert len(found) == len(WAYS) and not any(found.values()), found
