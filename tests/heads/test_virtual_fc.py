"""Virtual FC on 1, 2 and 3 ranks against the paper's procedure, written out row by row, and how anchors are leased."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import HeadConfig
from ffc_ds.data.randomness import mix
from ffc_ds.heads.virtual_fc import VirtualFC, lease_anchors
from tests.heads.test_full_fc import CASES, DIM, assert_same, dense_loss, train
from tests.heads.test_full_fc import batches as batches_of_full_fc
from tests.ranks import run_ranks

ANCHORS, IDENTITIES = 67, 500
MARGINS = ["am", "arc", "sv"]


def head_of(case):
    settings, optim = CASES[case]
    return VirtualFC(HeadConfig(scale=16.0, **settings), optim, ANCHORS, DIM, torch.device("cpu"))


def batches():
    """Twelve identities of two images each; some share a group."""
    for step, (features, _) in enumerate(batches_of_full_fc()):
        identities = np.random.default_rng(step).choice(IDENTITIES, features.shape[1], replace=False)
        identities[1] = (identities[0] + 2 * ANCHORS) % IDENTITIES
        identities[2] = identities[0] % ANCHORS
        yield features, np.stack([identities, identities])


def run_sharded(workspace_bytes):
    return {case: train(head_of(case), workspace_bytes, batches) for case in MARGINS}


def regenerated(weights, features, labels, key):
    """The anchors as the softmax sees them, the anchor of each row, and who has which."""
    unit = F.normalize(features.detach(), dim=-1)
    lease = lease_anchors(labels.flatten(), ANCHORS, key)
    anchors = lease.anchor[lease.identity].reshape(labels.shape)
    present = weights.clone()
    for anchor in np.unique(anchors):
        present[anchor] = F.normalize(unit[torch.from_numpy(anchors == anchor)].sum(0), dim=0)
    return present, anchors, lease


def run_slowly(case):
    head = head_of(case)
    weights, velocity, losses, grads = head.weights.clone(), torch.zeros_like(head.weights), [], []
    for step, (features, labels) in enumerate(batches()):
        features = features.requires_grad_()
        present, anchors, lease = regenerated(weights, features, labels, mix(0, step, 0))
        present.requires_grad_()
        loss = dense_loss(features, anchors, present, head.config)
        loss.backward()
        for anchor in range(ANCHORS):
            if anchor in lease.anchor[~lease.home]:
                present.data[anchor] = weights[anchor]
                present.grad[anchor] = 0
        velocity = 0.9 * velocity + present.grad + 5e-4 * present.detach()
        weights = present.detach() - 0.05 * velocity
        losses.append(loss.item())
        grads.append(features.grad)
    return losses, torch.stack(grads), weights


@pytest.mark.parametrize(("world", "workspace_bytes"), [(1, 1), (2, 1 << 20), (3, 1)])
def test_sharded_equals_the_procedure(world, workspace_bytes):
    assert_same(run_ranks(world, run_sharded, workspace_bytes), MARGINS, run_slowly)


def test_an_anchor_stands_for_one_identity_of_a_batch():
    labels = np.array([5, 15, 7, 5, 25, 7, 3])
    for key in range(20):
        lease = lease_anchors(labels, 10, key)
        by_label = dict(zip(np.unique(labels), zip(lease.anchor, lease.home, strict=True), strict=True))
        assert by_label[5] == (5, True) and by_label[7] == (7, True) and by_label[3] == (3, True)
        assert not by_label[15][1] and not by_label[25][1]
        assert len(set(lease.anchor.tolist())) == 5
        np.testing.assert_array_equal(np.unique(labels)[lease.identity], labels)


def test_with_as_many_anchors_as_identities_every_anchor_can_be_needed():
    lease = lease_anchors(np.arange(0, 50, 10), 5, key=1)
    assert sorted(lease.anchor) == [0, 1, 2, 3, 4] and lease.home.sum() == 1


def test_a_refused_step_leaves_the_anchors_as_they_were():
    head = head_of("am")
    before = head.weights.clone()
    head.loss(*next(batches()))
    head.step(applied=False, learning_rate=0.1)
    assert torch.equal(head.weights, before)


@pytest.mark.parametrize("case", MARGINS)
@pytest.mark.parametrize("same_identities", [False, True])
def test_two_micro_batches_are_one_step(case, same_identities):
    """Anchors get the mean of both gradients; of two that regenerate an anchor the later one stays."""
    head, data = head_of(case), list(batches())[:2]
    if same_identities:
        data[1] = data[1][0], data[0][1]
    weights, stays, grad = head.weights.clone(), head.weights.clone(), torch.zeros_like(head.weights)
    for micro, (features, labels) in enumerate(data):
        head.loss(features, labels)
        present, anchors, lease = regenerated(weights, features, labels, mix(0, 0, micro))
        stays[lease.anchor[lease.home]] = present[lease.anchor[lease.home]]
        present.requires_grad_()
        dense_loss(features, anchors, present, head.config).backward()
        present.grad[lease.anchor[~lease.home]] = 0
        grad += present.grad / 2
    head.step(applied=True, learning_rate=0.1)
    torch.testing.assert_close(head.weights, stays - 0.05 * (grad + 5e-4 * stays))
