"""Full softmax on 1, 2 and 3 ranks (uneven shards) against torch's dense cross-entropy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config import HeadConfig
from ffc_ds.distributed import rank, world_size
from ffc_ds.heads.full_fc import FullFC
from tests.ranks import run_ranks

CLASSES, DIM, ROWS, STEPS = 200, 8, 12, 4
MARGINS = ["am", "arc", "sv"]


def head_of(margin, workspace_mb=64):
    config = HeadConfig(name="full_fc", margin=margin, scale=16.0, workspace_mb=workspace_mb)
    return FullFC(config, CLASSES, DIM, torch.device("cpu"))


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield torch.from_numpy(rng.standard_normal((2, ROWS, DIM))).float(), rng.integers(0, CLASSES, (2, ROWS))


def run_sharded(workspace_bytes):
    results = []
    part = ROWS // world_size()
    mine = slice(rank() * part, (rank() + 1) * part)
    for margin in MARGINS:
        head, losses, grads = head_of(margin), [], []
        head.workspace_bytes = workspace_bytes
        for features, labels in batches():
            own = features[:, mine].clone().requires_grad_()
            loss, _ = head.loss(own, labels)
            losses.append(loss.item())
            grads.append(torch.autograd.grad(loss, own)[0] / world_size())
            head.step(applied=True, learning_rate=0.1)
        results.append((losses, torch.stack(grads), head.weights))
    return results


def bend(cosines, labels, margin):
    index = torch.arange(len(labels))
    cosines, t = cosines.clone(), cosines[index, labels]
    if margin == "arc":
        angle = torch.cos(torch.acos(t) + 0.5)
        cosines[index, labels] = torch.where(t < -math.cos(0.5), t - 0.5 * math.sin(0.5), angle)
        return cosines
    if margin == "sv":
        cosines = torch.where(cosines > t.detach()[:, None] - 0.4, 1.2 * cosines + 0.2, cosines)
    cosines[index, labels] = torch.where((t > 0.4) | (torch.tensor(margin == "am")), t - 0.4, t)
    return cosines


def run_densely(margin):
    weights = head_of(margin).weights.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses, grads = [], []
    for features, labels in batches():
        features = features.requires_grad_()
        cosines = F.normalize(features.flatten(0, 1), dim=1) @ F.normalize(weights, dim=1).T
        labels = torch.from_numpy(labels).flatten()
        loss = F.cross_entropy(16 * bend(cosines, labels, margin), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        grads.append(features.grad)
    return losses, torch.stack(grads), weights.detach()


@pytest.mark.parametrize(("world", "workspace_bytes"), [(1, 1), (2, 1 << 20), (3, 1)])
def test_sharded_equals_dense(world, workspace_bytes):
    results = run_ranks(world, run_sharded, workspace_bytes)
    for case, margin in enumerate(MARGINS):
        losses, grads, weights = run_densely(margin)
        ranks = [result[case] for result in results]
        for found, *_ in ranks:
            np.testing.assert_allclose(found, losses, rtol=1e-5)
        torch.testing.assert_close(torch.cat([found[1] for found in ranks], 2), grads, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([found[2] for found in ranks]), weights, rtol=1e-4, atol=1e-5)


def test_a_refused_step_changes_nothing():
    head = head_of("am")
    features, labels = next(batches())
    before = head.weights.clone()
    head.loss(features, labels)
    head.step(applied=False, learning_rate=0.1)
    assert torch.equal(head.weights, before) and not head.velocity.any()


def test_two_micro_batches_are_one_batch():
    (first, first_labels), (second, second_labels) = list(batches())[:2]
    split, whole = head_of("am"), head_of("am")
    for features, labels in ((first, first_labels), (second, second_labels)):
        split.loss(features, labels)
    whole.loss(torch.cat([first, second], 1), np.concatenate([first_labels, second_labels], 1))
    for head in (split, whole):
        head.step(applied=True, learning_rate=0.1)
    torch.testing.assert_close(split.weights, whole.weights)
