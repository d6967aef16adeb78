"""The step of a head and its floor, timed in turn in processes of their own, and the memory that the head takes."""

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing as mp

from ffc_ds.benchmark.head_cell import (
    COPIED,
    Cell,
    batch_of,
    copy_of,
    flop_of_products,
    head_of,
    moved_bytes,
    products_of,
    refuse,
)
from ffc_ds.benchmark.measuring import forget_peak, peak, seconds
from ffc_ds.benchmark.pages import cores, this_machine
from ffc_ds.distributed import all_reduce, together
from ffc_ds.errors import UserError
from ffc_ds.files import write_whole
from ffc_ds.heads.base import Head

LEARNING_RATE = 0.1
WARM_UP = 3  # steps, the first of which set up workspaces and state


def measure_in_processes(cell: Cell, repeats: int, path: Path, about: dict) -> None:
    """Write what was found, the cell, and `about` to `path`; "skipped" and the reason if it cannot be measured."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_on_rank, (cell, repeats, f"file://{folder}/store", path, about), nprocs=cell.ranks)


def _on_rank(rank, cell, repeats, store, path, about):
    torch.set_num_threads(max(1, cores() // cell.ranks))
    device = torch.device(cell.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    if cell.ranks > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=cell.ranks)
    try:
        found = measure(cell, repeats, device)
    except UserError as error:
        found = {"skipped": str(error)}
    if rank == 0:
        write_whole(path, json.dumps(asdict(cell) | found | about | {"machine": this_machine(cell.device)}, indent=1))
    if cell.ranks > 1:
        dist.destroy_process_group()


def measure(cell: Cell, repeats: int, device: torch.device) -> dict:
    together(lambda: refuse(cell, device))
    forget_peak(device)
    before = peak(device)
    head = head_of(cell, device)
    forget_peak(device)
    for number in range(WARM_UP):
        step(head, *batch_of(cell, number, device))
    memory = torch.tensor([peak(device), before], dtype=torch.float64, device=device) / 2**30
    beside = [products_of(cell, head, device), copy_of(device)]
    for each in beside:
        each()
    times = []
    for number in range(WARM_UP, WARM_UP + repeats):
        action = partial(step, head, *batch_of(cell, number, device))
        times.append([seconds(each, device) for each in (action, *beside)])
    times = all_reduce(torch.tensor(times, dtype=torch.float64, device=device), dist.ReduceOp.MAX).cpu().numpy()
    copy_rate = 2 * COPIED[device.type] / np.median(times[:, 2])
    moving = moved_bytes(cell) / copy_rate
    most, before = all_reduce(memory, dist.ReduceOp.MAX).tolist()
    return {
        "columns": cell.columns,
        "images": cell.images,
        "step_ms": 1000 * np.median(times[:, 0]),
        "products_ms": 1000 * np.median(times[:, 1]),
        "products_ratio": np.median(times[:, 0] / times[:, 1]),
        "moving_ms": 1000 * moving,
        "ratio": np.median(times[:, 0] / (times[:, 1] + moving)),
        "products_tflops": flop_of_products(cell) / np.median(times[:, 1]) / 1e12,
        "copy_gb_s": copy_rate / 1e9,
        "peak_gib": most,
        "own_gib": max(most - before, 0.0),  # what was free in the process before may be used again
        "repeats": repeats,
    }


def step(head: Head, probe, identities, gallery) -> None:
    loss, _ = head.loss(probe, identities, gallery)
    loss.backward()
    head.step(True, LEARNING_RATE)
