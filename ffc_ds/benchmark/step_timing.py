"""The whole step of a run and of what it is held against, timed in turn on ranks of their own."""

import gc
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing as mp

from ffc_ds.benchmark.measuring import Parts, forget_peak, peak, seconds, wait
from ffc_ds.benchmark.pages import this_machine
from ffc_ds.benchmark.step_cell import StepCell, batches_of
from ffc_ds.distributed import all_reduce, barrier, together
from ffc_ds.errors import UserError
from ffc_ds.files import write_whole
from ffc_ds.launching import leave

AT_ONCE = {"cpu": 1, "cuda": 5}  # steps between two looks at the clock, so that the host may run ahead of a GPU
WARM_UP, MOST_WARM_UP = 2, 40  # steps; more while fp16 looks for a loss scale
LEAST_ROUNDS = 3
OF_PARTS = 3  # steps whose parts are timed


def measure_in_processes(cell: StepCell, repeats: int, minutes: int, path: Path, about: dict) -> None:
    """Write what was found, the cell, and `about` to `path`: "skipped" and the reason if it cannot be measured,
    "failed" and the last line of the error if it broke or took longer than `minutes`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deadline = time.monotonic() + 60 * minutes
    context = mp.spawn(_on_rank, (cell, repeats, minutes, port, path, about), nprocs=cell.ranks, join=False)
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took more than {minutes} minutes")
    except Exception as error:  # of any type: the other cells are to be measured
        for process in context.processes:
            process.kill()
        _write(path, cell, {"failed": str(error).strip().splitlines()[-1]}, about)


def _on_rank(rank, cell, repeats, minutes, port, path, about):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": cell.ranks, "LOCAL_SIZE": cell.ranks}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if cell.device == "cpu":  # also where there is a GPU
        place |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {key: str(value) for key, value in place.items()}
    from ffc_ds.training.process_group import init_distributed  # imports DeepSpeed, which looks for its device

    device = init_distributed()
    try:
        found = measure(cell, repeats, device, 60 * minutes / 2)
    except UserError as error:
        found = {"skipped": str(error)}
    if rank == 0:
        _write(path, cell, found, about)
    barrier()
    leave(0)


def _write(path: Path, cell: StepCell, found: dict, about: dict) -> None:
    write_whole(path, json.dumps(asdict(cell) | found | about | {"machine": this_machine(cell.device)}, indent=1))


def measure(cell: StepCell, repeats: int, device: torch.device, patience: float) -> dict:
    """What each system of the cell takes, in `repeats` rounds, or as many as fit into `patience` seconds.

    Raises UserError, on all ranks, if the product cannot be built.
    """
    from ffc_ds.benchmark.step_systems import systems_of

    begin = time.monotonic()
    batches, systems, found = batches_of(cell, device), {}, {}
    for name, build in systems_of(cell).items():
        try:
            systems[name], found[name] = _start(name, build, cell, batches, device)
        except (UserError, torch.OutOfMemoryError) as error:
            if name == "product" or (cell.ranks > 1 and not isinstance(error, UserError)):
                raise
            found[name] = {"skipped": str(error).splitlines()[0]}
        gc.collect()
    clock = _Clock(batches, device)
    times = []
    for number in range(repeats):
        times.append([clock.steps(system, AT_ONCE[device.type]) for system in systems.values()])
        late = torch.tensor(float(time.monotonic() - begin > patience), device=device)
        if number + 1 >= LEAST_ROUNDS and all_reduce(late, dist.ReduceOp.MAX):
            break
    times = all_reduce(torch.tensor(times, dtype=torch.float64, device=device), dist.ReduceOp.MAX).cpu().numpy()
    refused = [clock.refused[system] for system in systems.values()]
    for place, (name, system) in enumerate(systems.items()):
        found[name] |= {
            "step_ms": 1000 * np.median(times[:, place]),
            "images_per_second": cell.images / np.median(times[:, place]),
            "ratio": np.median(times[:, place] / times[:, 0]),
            "refused": refused[place],
            "parts_ms": clock.parts(system),
        }
    messages = clock.messages(systems["product"]) if cell.ranks > 1 else None
    return {"systems": found, "rounds": len(times), "messages_ms": messages}


def _start(name: str, build: Callable, cell: StepCell, batches, device: torch.device):
    """The system after some steps; seconds until its first one was done, and the memory that it takes."""
    from ffc_ds.benchmark.step_systems import as_it_computes, refuse_plain

    if name == "plain":
        together(lambda: refuse_plain(cell, device))
    clock = _Clock(batches, device)
    forget_peak(device)
    before = peak(device)
    begin = time.perf_counter()
    system = build(device)
    as_it_computes(system, device)
    clock.step(system)
    wait(device)
    start = time.perf_counter() - begin
    applied = 0
    for number in range(1, MOST_WARM_UP):
        applied = applied + 1 if clock.step(system) else 0
        if number >= WARM_UP and applied >= WARM_UP:
            break
    most = torch.tensor([start, (peak(device) - before) / 2**30], dtype=torch.float64, device=device)
    start, most = all_reduce(most, dist.ReduceOp.MAX).tolist()
    return system, {"start_s": start, "peak_gib": max(most, 0.0), "compiled": bool(system.compiled)}


class _Clock:
    """Steps of systems, each on the next batch, and what they take; `refused` counts those that were not applied."""

    def __init__(self, batches, device: torch.device):
        self.batches, self.device = batches, device
        self.taken, self.refused = 0, Counter()

    def step(self, system, mark: Callable[[str], None] = lambda name: None) -> bool:
        self.taken += 1
        applied = system.step(self.batches[self.taken % len(self.batches)], mark)
        self.refused[system] += not applied
        return applied

    def steps(self, system, number: int) -> float:
        """Seconds of one of `number` steps."""
        from ffc_ds.benchmark.step_systems import as_it_computes

        as_it_computes(system, self.device)
        return seconds(lambda: [self.step(system) for _ in range(number)], self.device) / number

    def parts(self, system) -> dict[str, float]:
        """Milliseconds of each, the median of some steps, of the slowest rank."""
        from ffc_ds.benchmark.step_systems import as_it_computes

        as_it_computes(system, self.device)
        taken = []
        for _ in range(OF_PARTS):
            barrier()
            wait(self.device)
            parts = Parts(self.device)
            self.step(system, parts)
            taken.append(parts.seconds())
        medians = [1000 * np.median([each[name] for each in taken]) for name in taken[0]]
        slowest = all_reduce(torch.tensor(medians, dtype=torch.float64, device=self.device), dist.ReduceOp.MAX)
        return dict(zip(taken[0], slowest.tolist(), strict=True))

    def messages(self, system) -> float | None:
        """Milliseconds of a step in which messages are on their way, as the profiler has them on rank 0."""
        from ffc_ds.benchmark.step_systems import as_it_computes

        as_it_computes(system, self.device)
        with torch.profiler.profile() as profiler:
            self.step(system)
            wait(self.device)
        events = [each for each in profiler.events() if each.name.startswith(("gloo:", "ncclDevKernel"))]
        spans = [each.time_range for each in events]
        return sum(each.elapsed_us() for each in spans) / 1000 if spans else None
