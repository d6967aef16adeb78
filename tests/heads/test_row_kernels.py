"""Compiled updates of class rows give what they give as they are, on blocks of any number of rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.heads.row_kernels import RowKernels
from ffc_ds.heads.workspace import Workspace

CLASSES, DIM, ROWS, STEPS = 300, 16, 12, 4


def weights_after(name, compiled, optim="sgd", **settings):
    """Of a head of that name after some steps on random features, and how many graphs the steps have compiled."""
    device = torch.device("cpu")
    config = HeadConfig(name, workspace_mb=1, **settings)
    head = build_head(config, ClassOptimConfig(optim), CLASSES, DIM, MicroBatches(ROWS, 2 * ROWS), device, seed=1)
    head.settings = replace(head.settings, workspace_bytes=64 * 1024)  # several blocks, the last one shorter
    if compiled:
        head.compile()
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        probe = torch.randn(2, ROWS, DIM, generator=generator).requires_grad_()
        loss, _ = head.loss(probe, np.random.default_rng(step).integers(0, CLASSES, (2, ROWS)))
        loss.backward()
        head.step(True, 0.1)
    return head.weights.float(), torch._dynamo.utils.counters["stats"]["unique_graphs"] - counted


@pytest.mark.parametrize("name", ["full_fc", "partial_fc"])
def test_a_compiled_head_learns_the_same_and_compiles_nothing_later(name):
    plain, _ = weights_after(name, False)
    compiled, later = weights_after(name, True)
    torch.testing.assert_close(compiled, plain)
    assert later == 0, "compiled once more in the middle of a run"


def test_compiled_bf16_rows_are_rounded_alike():
    plain, _ = weights_after("full_fc", False, dtype="bfloat16")
    compiled, _ = weights_after("full_fc", True, dtype="bfloat16")
    different = (compiled != plain).float().mean()
    assert different < 1e-3, "only where the last bit of an fp32 number decides"
    torch.testing.assert_close(compiled, plain, rtol=2**-7, atol=1e-6)


def test_kernels_that_cannot_be_compiled_stay_as_they_were():
    kernels = RowKernels(Workspace(torch.device("cpu")))
    grad, vectors = torch.randn(3, 4), torch.randn(3, 4)
    expected = (grad * vectors).sum(1, keepdim=True)

    def trial():
        raise RuntimeError("no C++ compiler")

    with pytest.raises(RuntimeError, match="no C"):
        kernels.compile(trial)
    torch.testing.assert_close(kernels.along(grad, vectors, torch.ones(3, 1)), expected)
