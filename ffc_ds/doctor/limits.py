"""What a host lets a run have: memory, shared memory, open files."""

import resource
import shutil
from dataclasses import replace

import psutil
import torch

from ffc_ds.data.batch_checks import SHARED_MEMORY, check_memory_of_workers
from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding, amount
from ffc_ds.doctor.settings import plan_of
from ffc_ds.host_memory import free_memory
from ffc_ds.planning.backbone import count_backbone
from ffc_ds.planning.plan import MAPPED, OVERHEAD, SAVED, Plan, remedies

TIGHT = 0.9  # of the memory: a plan is right to a tenth
FILES, FILES_OF_WORKER, FILES_OF_RANK = 64, 12, 8  # checkpoints and libraries; pipes and mapped batches; connections
NCCL_BUFFERS = 512 << 20  # bytes of shared memory


def measure_memory(case: Case) -> dict[str, float]:
    """Free bytes of the host, and of the GPU if there is one."""
    free = free_memory()
    if case.device.type != "cuda":
        return {"host": free}
    torch.cuda.empty_cache()
    return {"host": free, "gpu": torch.cuda.mem_get_info(case.device)[0]}


def judge_memory(case: Case, found: list[dict[str, float]]) -> Finding:
    """The plan beside what is free, on the host and the GPU that have least."""
    plan, of_hosts = plan_of(case), case.ranks_of_hosts()
    if plan.refusal:
        return Finding("problem", f"the head takes no such settings: {plan.refusal}", "change these settings")
    most = max(map(len, of_hosts.values()))
    needed = {"host": sum(size for name, size in plan.host.items() if name != MAPPED)}
    if "gpu" in found[0]:
        needed["gpu"] = plan.total - plan.memory["CUDA and NCCL"]  # which are there already
    else:
        needed["host"] += most * plan.total
    free = {place: min(each[place] for each in found) for place in needed}
    parts = [f"{place}: {needed[place] / 2**30:,.2f} of {free[place] / 2**30:,.2f} GiB" for place in needed]
    measured = f"planned, of what is free: {'; '.join(parts)}"
    worst = max(needed, key=lambda place: needed[place] / free[place])
    filled = needed[worst] / free[worst]
    if filled <= TIGHT:
        return Finding("ok", measured)
    advice = f"end what else takes memory there, or change the run: {'; or '.join(_changes(plan, worst, free[worst]))}"
    return Finding("problem" if filled > 1 else "warning", measured, advice)


def _changes(plan: Plan, place: str, free: float) -> list[str]:
    """What would make the plan fit into the free bytes of a GPU or of a host."""
    settings, changes = plan.settings, []
    if place == "host":
        changes = ["fewer data.workers"] if settings.workers else []
        changes += ["class_optim.memory device"] if settings.class_memory == "host" else []
    on_cpu = plan.memory["CUDA and NCCL"] == 0
    if place == "gpu" or on_cpu:
        ranks = settings.gpus_per_node if on_cpu else 1
        others = sum(size for name, size in plan.host.items() if name != SAVED) if on_cpu else 0
        # A checkpoint while it is written takes as much again, at most. The overhead is there already.
        room = (free - others) / ranks / (1 + on_cpu) + OVERHEAD
        found = remedies(replace(settings, gpu_memory=room / 2**30), count_backbone(settings)) if room > 0 else []
        changes += [change for change in found if not (on_cpu and "class_optim.memory" in change)]
    return changes or ["more memory"]


def measure_shared_memory(case: Case) -> int | None:
    """Free bytes of /dev/shm. Raises UserError if data.workers need more."""
    check_memory_of_workers(case.config)
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def judge_shared_memory(case: Case, found: list[int | None]) -> Finding:
    sizes = [free for free in found if free is not None]
    if not sizes:
        return Finding("ok", f"there is no {SHARED_MEMORY}")
    measured = f"{amount(min(sizes))} are free, enough for data.workers {case.config.data.workers}"
    if case.device.type == "cuda" and min(sizes) < NCCL_BUFFERS and max(map(len, case.ranks_of_hosts().values())) > 1:
        return Finding("warning", f"{measured}, but few for NCCL", "start the container with --shm-size 8g")
    return Finding("ok", measured)


def measure_files(case: Case) -> dict[str, int]:
    """Open files of this process now, and how many it may have, and raise that to."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"open": psutil.Process().num_fds(), "limit": limit, "hard": hard}


def judge_files(case: Case, found: list[dict[str, int]]) -> Finding:
    more = FILES + FILES_OF_WORKER * case.config.data.workers + FILES_OF_RANK * len(found)
    rank = min(range(len(found)), key=lambda rank: found[rank]["limit"] - found[rank]["open"])
    each = found[rank]
    needed = each["open"] + more
    measured = f"a process may have {each['limit']:,}, has {each['open']} and may need {needed:,}"
    if each["limit"] >= 2 * needed:
        return Finding("ok", measured)
    least = max(4096, 2 * needed)
    advice = f"ulimit -n {least}" + ("" if each["hard"] >= least else " (an administrator must raise the hard limit)")
    state = "problem" if each["limit"] < needed else "warning"
    return Finding(state, f"{measured} ({case.name(rank)})", f"{advice} on every host, where the ranks are started")
