"""The data of the run: whether it opens, and how fast this host reads and decodes it."""

import math
import os
import time

import numpy as np

from ffc_ds.data.decoding import decode_many
from ffc_ds.data.sampler import sampler_of
from ffc_ds.distributed import rank, together
from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding, amount
from ffc_ds.doctor.settings import plan_of
from ffc_ds.training.data import open_training_data

IMAGES, AT_ONCE = 256, 32  # of each rank
SECONDS = 5.0  # for them
DAMAGED = 0.05  # share of the images that is a problem
REACHED = 0.5  # of the images/s that bare matrix products would allow, by a good step
WAITED = 0.2  # of the time that a step computes: more than this is said


def measure_data(case: Case) -> dict:
    """Open the data as a run does, then read and decode some of its images, each rank others. Raises UserError."""
    config = case.config
    faces, index, _ = open_training_data(config)
    together(lambda: sampler_of(config, index))
    draw, number = np.random.default_rng([config.seed, rank()]), len(index.images)
    rows = index.images[draw.choice(number, min(IMAGES, number), replace=False)]
    return {"identities": index.identities, "images": number} | _sample(case, faces, rows)


def _sample(case: Case, faces, rows: np.ndarray) -> dict:
    size, most = case.config.model.image_size, case.config.data.max_megapixels
    reading = decoding = 0.0
    number, total, damaged = 0, 0, []
    for start in range(0, len(rows), AT_ONCE):
        part = np.sort(rows[start : start + AT_ONCE])
        begin = time.perf_counter()
        encoded = faces.encoded(part)
        read = time.perf_counter()
        decode_many(encoded, size, None, lambda at, error, part=part: damaged.append((part[at], error)), most)
        reading, decoding = reading + read - begin, decoding + time.perf_counter() - read
        number, total = number + len(part), total + sum(len(one) for one in encoded if isinstance(one, bytes))
        if reading + decoding > SECONDS:
            break
    return {
        "number": number,
        "read": total / reading,
        "rate": number / (reading + decoding),
        "damaged": [f"{faces.where(row)}: {error}" for row, error in damaged],
        "cores": len(os.sched_getaffinity(0)),
    }


def judge_data(case: Case, found: list[dict]) -> Finding:
    number, damaged = sum(each["number"] for each in found), [text for each in found for text in each["damaged"]]
    rate = min(each["rate"] for each in found)
    measured = (
        f"{found[0]['images']:,} images of {found[0]['identities']:,} identities; of {number}, read at "
        f"{amount(min(each['read'] for each in found))}/s, a process reads and decodes {rate:,.0f} images/s"
    )
    if damaged:
        measured = f"{len(damaged)} of {number} images cannot be decoded ({damaged[0]}). {measured}"
        advice = "look through all with launch/prepare_data.py inspect FOLDER, and mend them or take them out"
        return Finding("problem" if len(damaged) > DAMAGED * number else "warning", measured, advice)
    return Finding("ok", measured)


def judge_workers(case: Case, found: list) -> Finding:
    """Whether data.workers keep up with half the images/s that the bare matrix products allow."""
    plan, data, matrices = plan_of(case), case.of("data"), case.of("matrices")
    ranks, workers = len(data), case.config.data.workers
    rate, slowest = min(each["rate"] for each in data), min(each[plan.settings.dtype] for each in matrices)
    wanted = REACHED * plan.images_per_second(slowest) / ranks
    cores = min(data[ranks_here[0]]["cores"] / len(ranks_here) for ranks_here in case.ranks_of_hosts().values())
    brought = min(max(1, workers), cores) * rate
    measured = (
        f"data.workers {workers} of a rank, of {cores:.3g} cores, bring {brought:,.0f} images/s; a rank trains on "
        f"{wanted:,.1f} or so"
    )
    needed = math.ceil(wanted / rate)
    if workers == 0 and wanted < WAITED * rate:
        return Finding("ok", f"{measured}, between which it waits {wanted / rate:.0%} of the time")
    if workers and brought >= wanted:
        return Finding("ok", measured)
    if needed > cores:
        advice = "more cores would help, or images that are stored in a size nearer to model.image_size"
        return Finding("warning", f"{measured}: the cores are too few", advice)
    return Finding("warning", measured, f"choose data.workers {needed}")
