import copy

import torch
from torch import nn

from ffc_ds.training.gallery import Gallery


def nets(dtype):
    torch.manual_seed(0)
    probe = nn.Linear(4, 3).to(dtype)
    gallery = copy.deepcopy(probe)
    return probe, gallery, Gallery(gallery, gallery, probe, 0.99)


def test_follows_by_the_formula():
    probe, gallery, follower = nets(torch.float32)
    expected = [p.detach().clone() for p in probe.parameters()]
    for _ in range(20):
        for parameter in probe.parameters():
            parameter.data += torch.randn_like(parameter)
        follower.follow()
        expected = [0.99 * g + 0.01 * p for g, p in zip(expected, probe.parameters(), strict=True)]
    for found, wanted in zip(gallery.parameters(), expected, strict=True):
        torch.testing.assert_close(found.data, wanted.detach())


def test_the_average_stays_fp32_in_half_precision():
    """In bf16 a step of 1 % of a small difference would be rounded away, and the gallery would stand still."""
    probe, gallery, follower = nets(torch.bfloat16)
    start = [value.clone() for value in follower.average]
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.mul_(1.01)
    for _ in range(500):
        follower.follow()
    for found, before, target in zip(follower.average, start, probe.parameters(), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, target.float() + 0.99**500 * (before - target.float()))
    for found, average in zip(gallery.parameters(), follower.average, strict=True):
        assert torch.equal(found.data, average.bfloat16())
