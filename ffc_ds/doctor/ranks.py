"""Who takes part: every rank with its host and device, and how far their clocks are apart."""

import socket
import statistics
import time

import numpy as np
import torch

from ffc_ds.benchmark.pages import this_machine
from ffc_ds.distributed import barrier
from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding

ROUNDS = 9
SKEW_SEEN, SKEW_HARMS = 1.0, 60.0  # seconds: logs no longer compare; certificates and file locks no longer hold


def measure_rank(case: Case) -> dict:
    on_gpu = case.device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "machine": this_machine(case.device.type if case.device.type in ("cpu", "cuda") else None),
        "gpu": str(torch.cuda.get_device_properties(case.device).uuid) if on_gpu else None,
        "gpus": torch.cuda.device_count() if on_gpu else 0,
    }


def judge_ranks(case: Case, found: list[dict]) -> Finding:
    of_hosts, machines = {}, {}
    for rank, each in enumerate(found):
        of_hosts.setdefault(each["host"], []).append(rank)
        machines.setdefault(each["machine"], []).append(each["host"])
    hosts = [f"{host}: {_count(ranks)}, {found[ranks[0]]['machine']}" for host, ranks in of_hosts.items()]
    measured = f"{_number(len(found), 'rank')} on {_number(len(of_hosts), 'host')}. {'; '.join(hosts)}"
    gpus = [each["gpu"] for each in found if each["gpu"] is not None]
    if len(set(gpus)) < len(gpus):
        advice = "give each rank a GPU of its own: as many --num_accelerators, or LOCAL_RANKs, as the host has GPUs"
        return Finding("problem", f"two ranks share a GPU. {measured}", advice)
    if len(found) == 1 and found[0]["gpus"] > 1:
        advice = "start it under the launcher to examine what a run would use: deepspeed launch/doctor.py ..."
        return Finding("warning", f"{measured}, of which one is used of {found[0]['gpus']}", advice)
    if len(machines) > 1:
        return Finding("warning", f"the ranks' machines differ. {measured}", "the slowest sets the pace: use like ones")
    if len({len(ranks) for ranks in of_hosts.values()}) > 1:
        advice = "see to the slots in the hostfile: some hosts may have GPUs that nobody uses"
        return Finding("warning", f"hosts have different numbers of ranks. {measured}", advice)
    return Finding("ok", measured)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _count(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def measure_clock(case: Case) -> list[float]:
    """The time, right after all have met, some times."""
    times = []
    for _ in range(ROUNDS):
        barrier()
        times.append(time.time())
    return times


def judge_clocks(case: Case, found: list[list[float]]) -> Finding:
    ahead = [statistics.median(np.subtract(times, found[0])) for times in found]
    skew = max(ahead) - min(ahead)
    measured = f"at most {skew:.3g} s apart" if len(found) > 1 else "one rank, one clock"
    if skew < SKEW_SEEN:
        return Finding("ok", measured)
    worst = max(range(len(ahead)), key=lambda rank: abs(ahead[rank] - statistics.median(ahead)))
    measured = f"{measured}; {case.name(worst)} is farthest from the others"
    return Finding("problem" if skew > SKEW_HARMS else "warning", measured, "let chrony or ntpd set the hosts' clocks")
