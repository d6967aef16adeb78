"""What batches ask of numbers and of a host: refused, or said, before it shows as something else."""

import math
import os
import shutil
from pathlib import Path

from ffc_ds.config.settings import Config
from ffc_ds.distributed import host_share
from ffc_ds.errors import UserError

PREFETCHED = 2  # batches of each worker
SHARED_MEMORY = Path("/dev/shm")
STARVED = 1 / 3  # share of the time spent waiting for batches that is worth a word


def check_batches(config: Config, ranks: int) -> None:
    """See `check_batch_size`, for a run on so many ranks."""
    whole = config.data.images_per_identity // 2 if config.loader == "id" else 1
    check_batch_size(config.data.batch_size, ranks, config.train.accumulation, whole)


def check_batch_size(batch_size: int, world_size: int, accumulation: int, rows_each: int = 1) -> None:
    """Raise UserError, naming what works instead, when a global batch cannot be cut evenly, or a micro-batch would cut
    the `rows_each` of an identity in a view: the nearest sizes, or for this size up to twice as many ranks, or other
    values of train.accumulation."""

    def unit(ranks: int, accumulation: int) -> int:
        return 2 * math.lcm(ranks, rows_each) * accumulation

    def fits(*cut: int) -> bool:
        return batch_size > 0 and batch_size % unit(*cut) == 0

    if fits(world_size, accumulation):
        return
    size = unit(world_size, accumulation)
    ranks = [each for each in range(1, 2 * world_size + 1) if fits(each, accumulation)]
    parts = [each for each in range(1, batch_size // unit(world_size, 1) + 1) if fits(world_size, each)]
    sizes = [count * size for count in (batch_size // size, batch_size // size + 1) if count > 0]
    works = [_nearest(sizes, batch_size)]
    works += [f"{_nearest(ranks, world_size)} rank{'s' * (ranks != [1])}"] if ranks else []
    works += [f"train.accumulation {_nearest(parts, accumulation)}"] if parts else []
    raise UserError(
        f"the global batch size {batch_size} cannot be cut into 2 views x {world_size} ranks x {accumulation} "
        f"accumulated micro-batches{f' of whole identities, {rows_each} images in a view' * (rows_each > 1)}: "
        f"choose {', or '.join(works)}"
    )


def _nearest(numbers: list[int], to: int, most: int = 8) -> str:
    *others, last = map(str, sorted(sorted(numbers, key=lambda number: abs(number - to))[:most]))
    return f"{', '.join(others)} or {last}" if others else last


def check_memory_of_workers(config: Config) -> None:
    """See `check_shared_memory`, for the ranks of a run on this host."""
    images = config.data.batch_size / config.train.accumulation * host_share()
    check_shared_memory(images, config.model.image_size, config.data.workers)


def check_shared_memory(images: float, image_size: int, workers: int) -> None:
    """Raise UserError if /dev/shm cannot hold what workers hand over: torch would die of it, with a bus error or worse.

    images: of a global micro-batch, those of the ranks on this host.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    needed = images * image_size**2 * 3 * (workers * PREFETCHED + 1)
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise UserError(
            f"data.workers {workers} takes {needed / 1e6:,.0f} MB of shared memory on this host, and {SHARED_MEMORY} "
            f"has {free / 1e6:,.0f} MB left: start the container with a larger --shm-size, or choose fewer "
            "data.workers (0 takes none)."
        )


def advice_on_waiting(share: float, workers: int) -> str | None:
    """What to say of steps that wait for batches for this share of the time, if it is much."""
    if share < STARVED:
        return None
    cores = len(os.sched_getaffinity(0))
    return (
        f"{share:.0%} of the time steps wait for images (data_wait): more data.workers help (each rank has {workers}, "
        f"and there are {cores} cores for all ranks here), or images that are stored as small as model.image_size"
    )
