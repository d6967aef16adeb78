"""`launch/benchmark.py step`: the whole step with every head, what it is held against, and what becomes of a failure."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ffc_ds.benchmark import step, step_timing
from ffc_ds.benchmark.step_cell import HEADS, StepCell, batches_of
from ffc_ds.benchmark.step_page import write_step
from ffc_ds.benchmark.step_timing import measure, measure_in_processes
from ffc_ds.errors import UserError
from launch.benchmark import main
from tests.ranks import run_ranks
from tests.warm import ON_CPU

CPU = torch.device("cpu")
TINY = ["--model", "mobilefacenet", "--image_size", "16", "--batch", "4", "--device", "cpu", "--repeats", "2"]
PARTS = {"probe forward", "head", "backward", "optimizer", "class optimizer"}


def cell(head="full_fc", ranks=1, **more):
    about = {"identities": 2000, "ranks": ranks, "dtype": "float32", "head_dtype": "float32", "device": "cpu"}
    about |= {"model": "mobilefacenet", "image_size": 16, "batch": 4, "compiled": False}
    return StepCell(head, **(about | more))


def assert_sane(found, gallery=False):
    run, systems = found["systems"]["product"], found["systems"]
    assert set(systems) == {"product", "bare", "plain"} and found["refused"] == 0
    assert set(run["parts_ms"]) == PARTS | ({"gallery"} if gallery else set())
    for each in systems.values():
        numbers = [each[key] for key in ("step_ms", "images_per_second", "ratio", "start_s"), *each["parts_ms"].values()]
        assert np.isfinite(numbers).all() and min(numbers) > 0 and each["peak_gib"] >= 0
    assert run["ratio"] == 1 and set(systems["bare"]["parts_ms"]) < PARTS
