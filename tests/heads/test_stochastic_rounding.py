"""Rounding to bf16 that is right on average, whose errors scatter as independent ones, and the same on any ranks."""

import numpy as np
import torch

from ffc_ds.heads.row_kernels import put
from ffc_ds.heads.stochastic_rounding import StochasticRounding

ROWS, DIM, STEPS = 40, 64, 400


def rounding(dim=DIM):
    return StochasticRounding(2, dim, torch.device("cpu"))


def rounded(rounding, tensor, value, rows):
    found = torch.empty(value.shape, dtype=torch.bfloat16)
    put(found, value, rounding.words(rows)[tensor])
    return found.float()


def test_it_is_one_of_the_neighbours_and_right_on_average_number_by_number():
    value = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
    lower = value.view(torch.int32) >> 16 << 16
    gap = (lower + (1 << 16)).view(torch.float32) - lower.view(torch.float32)
    round_rows, found = rounding(), torch.zeros(STEPS, ROWS, DIM)
    for step in range(STEPS):
        round_rows.begin(7, step)
        found[step] = rounded(round_rows, 0, value, torch.arange(ROWS))
    assert ((found - value).abs() < gap.abs()).all()
    errors = (found - value) / gap.abs()
    # A number's error has a deviation of at most 1/2, its mean one of 1/2 / sqrt(steps); 5 of these, for 2,560 numbers.
    assert errors.mean(0).abs().max() < 5 * 0.5 / STEPS**0.5
    # Sums over rows, columns and all scatter as sums of independent errors do.
    expected = errors.var(0)
    for axes in ((1,), (2,), (1, 2)):
        ratio = errors.sum(axes).var(0).sum() / expected.sum()
        assert 0.8 < ratio < 1.2, (axes, ratio)


def test_what_bf16_can_say_stays_and_so_do_zeros():
    value = torch.randn(ROWS, DIM).bfloat16().float()
    value[:, ::3] = 0.0
    value[:, 1::9] = -0.0
    round_rows = rounding()
    round_rows.begin(7, 1)
    assert torch.equal(rounded(round_rows, 0, value, torch.arange(ROWS)), value)


def test_rows_are_rounded_alike_wherever_they_are_and_tensors_and_steps_are_not():
    value = torch.randn(ROWS, DIM)
    round_rows, found = rounding(), {}
    for step in (1, 2):
        round_rows.begin(7, step)
        for tensor in (0, 1):
            found[tensor, step] = rounded(round_rows, tensor, value, torch.arange(100, 100 + ROWS)).clone()
    assert len({each.numpy().tobytes() for each in found.values()}) == 4
    some = np.array([3, 17, 20])
    part = rounded(round_rows, 1, value[some], torch.from_numpy(100 + some))
    assert torch.equal(part, found[1, 2][some])
