"""What the collectives of a step take, in the shapes of the run, and how much of the step that is."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from ffc_ds.distributed import all_gather, all_reduce, barrier, together, world_size
from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding, amount, duration
from ffc_ds.doctor.settings import plan_of
from ffc_ds.errors import UserError
from ffc_ds.heads.softmax import join_ranks
from ffc_ds.planning.backbone import DTYPES, count_backbone

SECONDS = 0.5  # for each collective, about
MOST_TIMES = 100
LARGEST = 1 << 24  # numbers of a message: larger ones are no faster
SHARE = 0.25  # of the time that a step computes: more than this is said
FASTER = (
    "see that the ranks use the fast network (NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names the interface, "
    "NCCL_DEBUG=INFO tells which one is taken), or send less often: a larger data.batch_size, train.accumulation"
)


def measure_features(case: Case) -> dict[str, float]:
    """The all-gather of a step's probe features: fp32 [r, dim] of each rank."""
    settings = case.settings
    own = _prepared(case, torch.float32, settings.batch_size, settings.embedding_size)
    total = own.nbytes * world_size()
    return {"total": total, "sent": total - own.nbytes, "seconds": _time(lambda: all_gather(own))}


def measure_gradients(case: Case) -> dict[str, float]:
    """The all-reduce of the backbone's gradients in their type, of which one bucket is sent."""
    settings = case.settings
    number = count_backbone(settings).parameters
    bucket = int(min(number, settings.bucket_size, LARGEST))
    gradients = _prepared(case, DTYPES[settings.dtype], bucket)
    seconds, total = _time(lambda: all_reduce(gradients)) * number / bucket, gradients.itemsize * number
    return {"total": total, "sent": 2 * total * (1 - 1 / world_size()), "seconds": seconds}


def measure_softmax(case: Case) -> dict[str, float]:
    """The two small reductions by which the ranks join their softmax: fp32 [R] and [2, R]."""
    rows = _prepared(case, torch.float32, case.settings.rows)
    total = 3 * rows.nbytes
    seconds = _time(lambda: join_ranks(rows, rows, rows))
    return {"total": total, "sent": 2 * total * (1 - 1 / world_size()), "seconds": seconds}


def judge_collective(case: Case, found: list[dict[str, float]]) -> Finding:
    if len(found) == 1:
        return Finding("ok", "one rank: nothing is sent")
    slowest = max(each["seconds"] for each in found)
    rate = found[0]["sent"] / slowest
    return Finding("ok", f"{duration(slowest)} for {amount(found[0]['total'])}; a rank sends {amount(rate)}/s")


def judge_step(case: Case, found: list) -> Finding:
    """The plan's bytes at the measured rates, beside its matrix products."""
    plan = plan_of(case)
    names = ("matrices", "all-gather", "all-reduce", "softmax")
    matrices, gathers, reductions, joins = (case.of(name) for name in names)
    computing = plan.flops / min(each[plan.settings.dtype] for each in matrices)
    measured = f"{duration(computing)} of matrix products in a step of a rank, at least"
    if len(joins) == 1:
        return Finding("ok", f"{measured}; nothing is sent")
    sending = {
        "backbone": plan.sent["backbone"] / _rate(reductions),
        "head": plan.sent["head"] / _rate(gathers) + _seconds(joins),
    }
    total = sum(sending.values())
    bandwidth = sum(plan.sent.values()) / total / 1e9
    parts = ", ".join(f"{duration(seconds)} for the {name}" for name, seconds in sending.items())
    measured = f"{measured}; {amount(sum(plan.sent.values()))} are sent: {parts}"
    advice = f"launch/plan.py takes sending to cost no time, unless you say --bandwidth {bandwidth:.2g}"
    if total > SHARE * computing:
        return Finding("warning", f"{measured}, {total / computing:.0%} of the products", f"{FASTER}. {advice}")
    return Finding("ok", measured, advice)


def _rate(found: list[dict[str, float]]) -> float:
    return found[0]["sent"] / _seconds(found)


def _seconds(found: list[dict[str, float]]) -> float:
    return max(each["seconds"] for each in found)


def _prepared(case: Case, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Zeros on the device, on all ranks or none: one alone in a collective would wait for ever."""

    def allocate() -> torch.Tensor:
        try:
            return torch.zeros(shape, dtype=dtype, device=case.device)
        except RuntimeError as error:
            raise UserError(f"no memory for a message of {list(shape)} {dtype}: {error}") from error

    return together(allocate)


def _time(action: Callable[[], object]) -> float:
    """Seconds of one call, on all ranks equally often; the first ones make connections."""
    for _ in range(2):
        once = _timed(action, 1)
    once = all_reduce(torch.tensor(once, device=get_accelerator().current_device_name()), dist.ReduceOp.MAX).item()
    return _timed(action, max(2, min(MOST_TIMES, int(SECONDS / once))))


def _timed(action, times):
    barrier()
    get_accelerator().synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        action()
    get_accelerator().synchronize()
    return (time.perf_counter() - begin) / times
