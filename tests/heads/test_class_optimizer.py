"""Row optimizers against torch's on the rows that they are given, and bf16 rounding."""

import pytest
import torch

from ffc_ds.config.settings import ClassOptimConfig
from ffc_ds.heads.class_optimizer import CLASS_OPTIMIZERS
from ffc_ds.heads.row_kernels import RowKernels
from ffc_ds.heads.workspace import Workspace

ROWS, DIM = 20, 6
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
TORCH = {
    "sgd": lambda weights: torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda weights: torch.optim.AdamW([weights], lr=0.1, weight_decay=0.01),
}


def optimizer_of(name, weights, **settings):
    workspace = Workspace(weights.device)
    config = ClassOptimConfig(name, weight_decay=0.01, **settings)
    return CLASS_OPTIMIZERS[name](config, weights, workspace, RowKernels(workspace), seed=3)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("rows", [slice(4, 12), torch.tensor([1, 7, 19])], ids=["side by side", "scattered"])
@pytest.mark.parametrize("memory", ["device", pytest.param("host", marks=ON_GPU)])
def test_rows_learn_as_with_torch_and_the_others_stay(name, rows, memory):
    device = "cuda" if memory == "host" else "cpu"  # on a CPU the device's memory is that of the host
    generator = torch.Generator(device).manual_seed(0)
    weights = torch.randn(ROWS, DIM, generator=generator, device=device)
    rows = rows if isinstance(rows, slice) else rows.to(device)
    before, dense = weights.clone(), torch.nn.Parameter(weights[rows].clone())
    optimizer, reference = optimizer_of(name, weights, memory=memory), TORCH[name](dense)
    for step in range(4):
        grad = torch.randn(dense.shape, generator=generator, device=device)
        dense.grad = grad.clone()
        reference.step()
        optimizer.begin(step, 0.1)
        optimizer.update(rows, weights[rows], grad)
    torch.testing.assert_close(weights[rows], dense.detach())
    others = torch.ones(ROWS, dtype=torch.bool, device=device)
    others[rows] = False
    assert torch.equal(weights[others], before[others])
    assert not any(state[others.to(state.device)].any() for state in optimizer.state.values())


def test_bf16_rows_are_right_on_average():
    """Updates far below the spacing of bf16 numbers, which rounding to the nearest would lose, all of them."""
    weights = torch.ones(1, 4000, dtype=torch.bfloat16)
    optimizer = optimizer_of("sgd", weights, momentum=0.0)
    optimizer.config.weight_decay = 0.0
    for step in range(20):
        optimizer.begin(step, 1e-4)
        optimizer.update(slice(0, 1), weights, torch.full((1, 4000), -1.0))
    assert set(weights.unique().tolist()) <= {1.0 + k / 128 for k in range(20)}
    # the deviation of a number is about 0.004, that of the mean 63 times less
    assert weights.float().mean().item() == pytest.approx(1 + 20 * 1e-4, abs=3e-4)


def test_rounding_repeats_with_the_step():
    found = []
    for step in (5, 5, 6):
        weights = torch.ones(1, 1000, dtype=torch.bfloat16)
        optimizer = optimizer_of("sgd", weights)
        optimizer.begin(step, 1e-3)
        optimizer.update(slice(0, 1), weights, torch.full((1, 1000), -1.0))
        found.append(weights)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
