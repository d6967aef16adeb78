"""head.workspace_mb bounds what a step takes for logits, whatever the margin, the type, and the micro-batches are."""

import numpy as np
import pytest
import torch

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.planning.live_bytes import LiveBytes

CLASSES, DIM, ROWS = 40_000, 4, 128  # 256 images: 39 MiB of logits in fp32
# norms, gradients and products of class rows, and copies of features: little, because features are short
BESIDE = 7 << 20


def build(workspace_mb, accumulation=1, **settings):
    config = HeadConfig(pool_size=1.0, workspace_mb=workspace_mb, group_identities=1, **settings)
    batches = MicroBatches(ROWS, 2 * ROWS, accumulation)
    return build_head(config, ClassOptimConfig(), CLASSES, DIM, batches, torch.device("cpu"), 0)


def peak_of_a_step(head, accumulation=1):
    generator = np.random.default_rng(0)
    with LiveBytes() as memory:
        for _ in range(accumulation):
            probe, gallery = torch.randn(2, ROWS, DIM, requires_grad=True), torch.randn(2, ROWS, DIM)
            labels = generator.integers(0, CLASSES, (2, ROWS))
            loss, _ = head.loss(probe, labels, gallery)
            loss.backward()
        head.step(True, 0.1)
    return memory.peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("margin", ["am", "sv"])
@pytest.mark.parametrize("workspace_mb", [8, 64])
def test_logits_stay_within_the_workspace(workspace_mb, margin, dtype):
    bound = (workspace_mb << 20) + BESIDE
    for accumulation in (1, 2):
        head = build(workspace_mb, accumulation, name="full_fc", margin=margin, dtype=dtype)
        assert peak_of_a_step(head, accumulation) <= bound, f"full_fc, {accumulation} micro-batches"
    pool = build(workspace_mb, margin=margin, dtype=dtype)
    pool.prefill(np.arange(CLASSES), torch.randn(CLASSES, DIM))
    assert peak_of_a_step(pool) <= bound, "ffc"


MARGINS = [{"margin": "adaface"}, {"margin": "curricular"}, {"margin": "curricular", "sub_centers": 3}]


@pytest.mark.parametrize("settings", MARGINS, ids=str)
def test_margins_and_sub_centers_too(settings):
    """Three weights of a class: three times what is beside the logits."""
    bound = (8 << 20) + settings.get("sub_centers", 1) * BESIDE
    assert peak_of_a_step(build(8, name="full_fc", **settings)) <= bound


def test_logits_that_fit_are_kept_and_others_are_not():
    for workspace_mb, accumulation, kept in ((64, 1, True), (64, 2, False), (8, 1, False), (128, 2, True)):
        head = build(workspace_mb, accumulation, name="full_fc")
        head.loss(torch.randn(2, ROWS, DIM, requires_grad=True), np.zeros((2, ROWS), np.int64))
        assert (head.micro_batches[0].kept is not None) == kept
