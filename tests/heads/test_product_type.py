"""Class rows in bf16 on a device that multiplies fp32 faster: all is as if they were the same numbers in fp32."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import HeadConfig
from ffc_ds.heads import softmax
from ffc_ds.heads.class_softmax import ClassSoftmax, ClassSoftmaxSettings, Columns
from ffc_ds.heads.margins import make_margin
from ffc_ds.heads.pool_loss import PoolColumns, PoolLossSettings, pool_loss
from ffc_ds.heads.softmax import Cells
from ffc_ds.heads.workspace import Workspace

CPU = torch.device("cpu")
ROWS, CLASSES, DIM = 12, 150, 16  # in blocks of 64


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(softmax, "multiplies_bf16", lambda device_type: False)


def of_classes(weights, features, sub_centers, workspace_bytes):
    labels = np.random.default_rng(0).integers(0, CLASSES, ROWS)
    settings = ClassSoftmaxSettings(make_margin(HeadConfig()), 64.0, 0.0, workspace_bytes, sub_centers)
    found = ClassSoftmax(features, [Columns(weights, Cells(labels, CPU, np.arange(ROWS)))], settings)
    blocks = list(found.blocks(0))
    assert len(blocks) == 3 or workspace_bytes > 1
    gradients = [found.class_gradient(0, block, weights[block]).clone() for block in blocks]
    return found.value, found.grad, torch.cat(gradients)


@pytest.mark.parametrize("sub_centers", [1, 2])
@pytest.mark.parametrize("workspace_bytes", [1, 1 << 20])
def test_class_weights(slow, sub_centers, workspace_bytes):
    torch.manual_seed(0)
    weights, features = torch.randn(CLASSES, sub_centers * DIM).bfloat16(), F.normalize(torch.randn(ROWS, DIM))
    found, exact = (of_classes(each, features, sub_centers, workspace_bytes) for each in (weights, weights.float()))
    assert all(map(torch.equal, found, exact))


def of_pool(weights, variants, probes):
    probes.grad = None
    slots, special = np.arange(ROWS) * 5 - 10, np.array([5, 40, 149])
    settings = PoolLossSettings(make_margin(HeadConfig()), 64.0, 3, 1.0, 1)
    columns = PoolColumns(weights, special, variants, 0)
    losses = pool_loss(probes, np.maximum(slots, -1), special, columns, settings, Workspace(CPU))
    losses[0].backward()
    return *losses, probes.grad


def test_the_pool_of_the_latest(slow):
    torch.manual_seed(0)
    probes = F.normalize(torch.randn(ROWS, DIM)).requires_grad_()
    weights, variants = F.normalize(torch.randn(CLASSES, DIM)), F.normalize(torch.randn(2, 3, DIM), dim=2)
    rounded = weights.bfloat16(), variants.bfloat16()
    found, exact = (of_pool(*each, probes) for each in (rounded, [part.float() for part in rounded]))
    assert all(map(torch.equal, found, exact))
