"""The folder that a run writes to: seen by all hosts, fast enough, with room."""

import os
import shutil
import statistics
import time
from contextlib import suppress
from pathlib import Path

from ffc_ds.distributed import broadcast_object, rank, together
from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding, amount, duration
from ffc_ds.doctor.settings import plan_of
from ffc_ds.errors import UserError
from ffc_ds.planning.plan import SAVED, Plan
from ffc_ds.shared_folder import open_shared

FILE = ".doctor-{}-{}"
BLOCK, BLOCKS = 4 << 20, 32
SECONDS = 2.0  # for writing them
SYNCS = 5
LONG = 60.0  # seconds for a checkpoint


def measure_folder(case: Case) -> dict[str, float]:
    """All ranks write at once, as they do a checkpoint: bytes/s, seconds of an fsync, free bytes. Nothing stays.

    Raises UserError, on all ranks, if the folder cannot be written to, or is not the same one for all.
    """
    folder = Path(case.config.output_dir)
    existed = broadcast_object(folder.exists())
    if rank() == 0:
        with suppress(OSError):
            for left in folder.glob(FILE.format("*", "*")):  # by a doctor that was killed
                left.unlink()
    open_shared(folder)
    found = together(lambda: _write(folder))
    if rank() == 0 and not existed:
        with suppress(OSError):
            folder.rmdir()
    return found


def _write(folder: Path) -> dict[str, float]:
    path, block = folder / FILE.format(os.getpid(), rank()), os.urandom(BLOCK)
    try:
        with open(path, "wb", buffering=0) as file:
            begin, written = time.perf_counter(), 0
            while written < BLOCKS * BLOCK and time.perf_counter() - begin < SECONDS:
                written += file.write(block)
            os.fsync(file.fileno())
            rate = written / (time.perf_counter() - begin)
            syncs = [_sync(file) for _ in range(SYNCS)]
        return {"rate": rate, "sync": statistics.median(syncs), "free": shutil.disk_usage(folder).free}
    except OSError as error:
        raise UserError(f"output_dir {folder}: writing there failed ({error.strerror}).") from None
    finally:
        path.unlink(missing_ok=True)


def _sync(file) -> float:
    begin = time.perf_counter()
    file.write(b"\n")
    os.fsync(file.fileno())
    return time.perf_counter() - begin


def judge_folder(case: Case, found: list[dict[str, float]]) -> Finding:
    rate, sync = sum(each["rate"] for each in found), max(each["sync"] for each in found)
    free = min(each["free"] for each in found)
    measured = (
        f"all ranks see {case.config.output_dir}, and write {amount(rate)}/s together; an fsync takes "
        f"{duration(sync)}; {amount(free)} are free"
    )
    return Finding("ok", measured)


def judge_checkpoints(case: Case, found: list) -> Finding:
    """Room and time for what the plan says a checkpoint holds."""
    folder, plan = case.of("output_dir"), plan_of(case)
    size, kept = checkpoint_bytes(plan), case.config.train.keep_checkpoints + 1  # the next one, beside those
    free, seconds = min(each["free"] for each in folder), size / sum(each["rate"] for each in folder)
    measured = f"about {amount(size)} each, {duration(seconds)} to write; {amount(free)} are free"
    if free < kept * size:
        advice = f"make room for {kept} of them, {amount(kept * size)}, or lower train.keep_checkpoints"
        return Finding("problem" if free < size else "warning", measured, advice)
    if seconds > LONG:
        return Finding("warning", measured, "choose a faster output_dir, or a larger train.checkpoint_every")
    return Finding("ok", measured)


def checkpoint_bytes(plan: Plan) -> float:
    """Of weights, optimizer state, nets that follow and class state, of all ranks together."""
    settings = plan.settings
    return plan.host[SAVED] / min(settings.gpus_per_node, settings.gpus) * settings.gpus
