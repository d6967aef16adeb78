"""Real processes for tests: a function on several gloo ranks."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from tests.warm import Call, environment, run_warm


def _one_rank(rank, world, folder, function, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.barrier()  # gloo aborts a rank whose peer leaves first
    dist.destroy_process_group()


def run_ranks(world: int, function, *args) -> list:
    """What a module's `function(*args)` returns on each of `world` gloo processes, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        calls = [Call(_one_rank, (rank, world, folder, function, args), environment()) for rank in range(world)]
        ended = run_warm(calls, kill_others=True)
        assert not any(each.code for each in ended), "".join(f"{each.code}: {each.stderr}" for each in ended)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world)]
