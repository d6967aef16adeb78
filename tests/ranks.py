"""Real processes for tests: a function on several gloo ranks."""

import os
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # several ranks, whatever GPUs there are


def _one_rank(rank, world, store, function, args, results):
    os.environ.update(ON_CPU)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        torch.save((function(*args), None), results / f"{rank}.pt")
        dist.barrier()  # gloo aborts a rank whose peer leaves first
    except BaseException:
        torch.save((None, traceback.format_exc()), results / f"{rank}.pt")
        raise
    finally:
        dist.destroy_process_group()


def run_ranks(world: int, function, *args) -> list:
    """What a module's `function(*args)` returns on each of `world` gloo processes, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        try:
            mp.spawn(_one_rank, (world, results / "store", function, args, results), nprocs=world, join=True)
        except mp.ProcessRaisedException as error:
            raise AssertionError(str(error)) from None
        return [torch.load(results / f"{rank}.pt", weights_only=False)[0] for rank in range(world)]
