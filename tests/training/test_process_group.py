"""How processes meet."""

import os

import pytest
import torch

from tests.launched import free_port
from tests.warm import Call, environment, run_warm


def threads_of(chosen):
    from ffc_ds.training.process_group import init_distributed

    torch.set_num_threads(7)  # as many as torch takes by itself
    init_distributed()
    here = max(1, round(len(os.sched_getaffinity(0)) / 2))
    assert torch.get_num_threads() == (7 if chosen else here)


@pytest.mark.parametrize("chosen", [False, True])
def test_ranks_share_the_cores_of_a_host(chosen):
    """Unless the user has chosen. Each would take all of them, and all would wait for each other."""
    job = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [environment(RANK=rank, LOCAL_RANK=rank, **job) for rank in ("0", "1")]
    if not chosen:
        ranks = [{key: value for key, value in each.items() if key != "OMP_NUM_THREADS"} for each in ranks]
    ended = run_warm([Call(threads_of, (chosen,), each) for each in ranks], kill_others=True)
    assert [each.code for each in ended] == [0, 0], ended
