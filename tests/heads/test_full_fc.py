"""Full softmax on 1, 2 and 3 ranks (uneven shards) against torch's dense cross-entropy and optimizers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import rank, world_size
from ffc_ds.heads.full_fc import FullFC
from tests.ranks import run_ranks

CLASSES, DIM, ROWS, STEPS = 200, 8, 12, 4
SGD, ADAMW = ClassOptimConfig(lr_factor=0.5), ClassOptimConfig("adamw", lr_factor=0.01, weight_decay=0.1)
CASES = {
    "am": ({"margin": "am"}, SGD),
    "arc": ({"margin": "arc"}, SGD),
    "arc that rises": ({"margin": "arc", "arc_guard": False}, SGD),
    "arc, straight through": ({"margin": "arc", "straight_through": True}, SGD),
    "sv": ({"margin": "sv"}, SGD),
    "combined": ({"margin": "combined", "combined": [1.2, 0.3, 0.1]}, SGD),
    "m3 alone": ({"margin": "combined", "combined": [1.2, 0.3, 0.1], "m3_alone": True}, SGD),
    "filtered": ({"margin": "am", "interclass_filter": 0.3}, SGD),
    "adamw": ({"margin": "am"}, ADAMW),
}


def head_of(case, kind=FullFC, **others):
    settings, optim = CASES[case]
    return kind(HeadConfig(scale=16.0, **settings | others), optim, CLASSES, DIM, torch.device("cpu"))


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield torch.from_numpy(rng.standard_normal((2, ROWS, DIM))).float(), rng.integers(0, CLASSES, (2, ROWS))


def run_sharded(workspace_bytes):
    return {case: train(head_of(case), workspace_bytes) for case in CASES}


def train(head, workspace_bytes, data=batches):
    losses, grads = [], []
    part = ROWS // world_size()
    mine = slice(rank() * part, (rank() + 1) * part)
    head.settings = replace(head.settings, workspace_bytes=workspace_bytes)
    for features, labels in data():
        own = features[:, mine].clone().requires_grad_()
        loss, _ = head.loss(own, labels)
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, own)[0] / world_size())
        head.step(applied=True, learning_rate=0.1)
    return losses, torch.stack(grads), head.weights


def bend(cosines, labels, config):
    """The logits of a margin, without the scale."""
    index, one = torch.arange(len(labels)), torch.ones(())
    cosines, t = cosines.clone(), cosines[index, labels]
    if config.margin == "am":
        target = t - 0.4
    elif config.margin == "sv":
        cosines = torch.where(cosines > t.detach()[:, None] - 0.4, 1.2 * cosines + 0.2, cosines)
        target = torch.where(t > 0.4, t - 0.4, t)
    elif config.margin == "combined" and config.m3_alone:
        target = t - 0.1
    else:
        m1, m2, m3 = config.combined if config.margin == "combined" else (1.0, 0.5, 0.0)
        target = torch.cos(m1 * torch.acos(t) + m2)
        turn = math.cos((math.pi - m2) / m1)
        beyond = t - 0.5 * math.sin(0.5) if config.margin == "arc" else t - turn - one
        if config.arc_guard:
            target = torch.where(t < turn, beyond, target)
        target = target - m3
        if config.straight_through:
            target = t + (target - t).detach()
    if config.interclass_filter:
        cosines = cosines.masked_fill(cosines > config.interclass_filter, -torch.inf)
    cosines[index, labels] = target
    return cosines


def dense_loss(features, labels, weights, config):
    cosines = F.normalize(features.flatten(0, 1), dim=1) @ F.normalize(weights, dim=1).T
    labels = torch.from_numpy(labels).flatten()
    return F.cross_entropy(16 * bend(cosines, labels, config), labels)


def run_densely(case):
    head = head_of(case)
    weights = head.weights.clone().requires_grad_()
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[CASES[case][1].name]
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optim = CASES[case][1]
    optimizer = kind([weights], lr=0.1 * optim.lr_factor, weight_decay=optim.weight_decay, **settings)
    losses, grads = [], []
    for features, labels in batches():
        features = features.requires_grad_()
        loss = dense_loss(features, labels, weights, head.config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        grads.append(features.grad)
    return losses, torch.stack(grads), weights.detach()


def assert_same(results, cases, reference):
    """What each rank found in each case, against losses, gradients of the features and weights of the reference."""
    for case in cases:
        losses, grads, weights = reference(case)
        ranks = [result[case] for result in results]
        for found, *_ in ranks:
            np.testing.assert_allclose(found, losses, rtol=1e-5, err_msg=case)
        torch.testing.assert_close(torch.cat([found[1] for found in ranks], 2), grads, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([found[2] for found in ranks]), weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("world", "workspace_bytes"), [(1, 1), (2, 1 << 20), (3, 1)])
def test_sharded_equals_dense(world, workspace_bytes):
    """A workspace of one byte means blocks of 64 classes, and logits that are worked out again."""
    assert_same(run_ranks(world, run_sharded, workspace_bytes), CASES, run_densely)


def test_a_refused_step_changes_nothing():
    head = head_of("am")
    features, labels = next(batches())
    before = head.weights.clone()
    head.loss(features, labels)
    head.step(applied=False, learning_rate=0.1)
    assert torch.equal(head.weights, before) and not head.optimizer.state["velocity"].any()


@pytest.mark.parametrize("workspace_bytes", [1, 1 << 20])
def test_eight_images_at_once_are_two_times_four(workspace_bytes):
    (first, first_labels), (second, second_labels) = list(batches())[:2]
    split, whole = head_of("sv"), head_of("sv")
    for head in (split, whole):
        head.settings = replace(head.settings, workspace_bytes=workspace_bytes)
    for features, labels in ((first, first_labels), (second, second_labels)):
        split.loss(features, labels)
    whole.loss(torch.cat([first, second], 1), np.concatenate([first_labels, second_labels], 1))
    for head in (split, whole):
        head.step(applied=True, learning_rate=0.1)
    torch.testing.assert_close(split.weights, whole.weights)


def test_bf16_class_state_stays_near_fp32():
    exact, rounded = (head_of("am", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.weights.dtype == rounded.optimizer.state["velocity"].dtype == torch.bfloat16
    found = [train(head, 1 << 20) for head in (exact, rounded)]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=2e-2)
    torch.testing.assert_close(found[1][2].float(), found[0][2], rtol=0.1, atol=0.02)
