"""Partial FC on 1, 2 and 3 ranks against a dense softmax over the rows that a step looks at, and its sample."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ffc_ds.data.randomness import mix
from ffc_ds.heads.partial_fc import PartialFC
from ffc_ds.heads.sampled_rows import Sample
from tests.heads.test_full_fc import CASES, CLASSES, assert_same, batches, dense_loss, head_of, run_densely, train
from tests.ranks import run_ranks

RATE = 0.1
MARGINS = ["am", "arc", "sv", "combined", "filtered"]


def partial(case, rate=RATE):
    return head_of(case, PartialFC, sample_rate=rate)


def sample_of(step, labels):
    wanted = round(RATE * CLASSES)
    sample = Sample(CLASSES, wanted, int(mix(0, step)) >> 1)
    return np.union1d(sample.members(np.arange(wanted)), labels)


def run_sharded(workspace_bytes):
    return {case: train(partial(case), workspace_bytes) for case in MARGINS}


def run_slowly(case):
    """Row by row: what is in the sample of a step or its batch learns, everything else stays."""
    head = partial(case)
    weights, velocity, losses, grads = head.weights.clone(), torch.zeros_like(head.weights), [], []
    for step, (features, labels) in enumerate(batches()):
        rows = sample_of(step, labels)
        chosen = weights[rows].requires_grad_()
        features = features.requires_grad_()
        loss = dense_loss(features, np.searchsorted(rows, labels), chosen, head.config)
        loss.backward()
        velocity[rows] = 0.9 * velocity[rows] + chosen.grad + 5e-4 * weights[rows]
        weights[rows] -= 0.1 * CASES[case][1].lr_factor * velocity[rows]
        losses.append(loss.item())
        grads.append(features.grad)
    return losses, torch.stack(grads), weights


@pytest.mark.parametrize(("world", "workspace_bytes"), [(1, 1), (2, 1 << 20), (3, 1)])
def test_sharded_equals_dense(world, workspace_bytes):
    assert_same(run_ranks(world, run_sharded, workspace_bytes), MARGINS, run_slowly)


def test_a_sample_of_all_classes_is_the_full_softmax():
    losses, grads, weights = run_densely("arc")
    found = train(partial("arc", rate=1.0), 1 << 20)
    np.testing.assert_allclose(found[0], losses, rtol=1e-5)
    torch.testing.assert_close(found[1], grads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], weights, rtol=1e-4, atol=1e-5)


def test_only_sampled_rows_move():
    """Where SGD on a dense parameter, as in the released code, moves every row from the second step on."""
    head = partial("am")
    data = list(batches())
    dense = torch.nn.Parameter(head.weights.clone())
    optimizer = torch.optim.SGD([dense], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step, (features, labels) in enumerate(data[:2]):
        before, dense_before, rows = head.weights.clone(), dense.detach().clone(), sample_of(step, labels)
        head.loss(features, labels)
        head.step(applied=True, learning_rate=0.1)
        optimizer.zero_grad()
        dense_loss(features, np.searchsorted(rows, labels), dense[rows], head.config).backward()
        optimizer.step()
        moved = np.flatnonzero((head.weights != before).any(1))
        np.testing.assert_array_equal(moved, rows)
        assert ((dense.detach() != dense_before).any(1)).all()
    assert len(rows) < CLASSES / 4


def test_micro_batches_share_the_sample_and_train_each_class_once():
    """Both micro-batches lack the same class: momentum and decay count once, as by a dense reference of both."""
    data = list(batches())[:2]
    data[1][1][0, 0] = data[0][1][0, 0]
    head, reference = partial("am"), partial("am")
    sample = sample_of(0, [])
    weights = reference.weights.clone().requires_grad_()
    total = 0
    for features, labels in data:
        head.loss(features, labels)
        rows = np.union1d(sample, labels)
        total = total + dense_loss(features, np.searchsorted(rows, labels), weights[rows], head.config) / 2
    total.backward()
    head.step(applied=True, learning_rate=0.1)
    rows = np.union1d(sample, np.stack([labels for _, labels in data]))
    expected = weights.detach().clone()
    expected[rows] -= 0.05 * (weights.grad[rows] + 5e-4 * expected[rows])
    torch.testing.assert_close(head.weights, expected)


def test_a_resumed_run_draws_the_same_sample():
    went_on, resumed = partial("am"), partial("am")
    data = list(batches())
    for features, labels in data[:2]:
        went_on.loss(features, labels)
        went_on.step(applied=True, learning_rate=0.1)
    resumed.load_host_state(went_on.host_state())
    for name, shard in resumed.shards().items():
        shard.local.copy_(went_on.shards()[name].local)
    losses = [head.loss(*data[2])[0] for head in (went_on, resumed)]
    assert losses[0] == losses[1]
    assert torch.equal(*(head.micro_batches[0].columns[0].rows for head in (went_on, resumed)))


@pytest.mark.parametrize(("classes", "wanted"), [(200, 20), (1000, 333), (17, 17), (20, 1), (10**8, 1000)])
def test_the_sample_is_spread_over_all_classes(classes, wanted):
    for key in range(20):
        sample = Sample(classes, wanted, key)
        members = sample.members(np.arange(wanted))
        np.testing.assert_array_equal(sample.strata(members), np.arange(wanted))
        np.testing.assert_array_equal(sample.members(torch.arange(wanted)).numpy(), members)
        everyone = np.sort(members)
        assert (np.diff(everyone) > 0).all() and everyone[0] >= 0 and everyone[-1] < classes
        for start, end in (
            (0, classes),
            (0, 0),
            (0, classes // 3),
            (classes // 3, classes - 1),
            (classes - 1, classes),
        ):
            rows, first = sample.rows(start, end, torch.device("cpu"))
            np.testing.assert_array_equal(rows, everyone[(everyone >= start) & (everyone < end)])
            np.testing.assert_array_equal(sample.strata(rows.numpy()), (first + np.arange(len(rows))) % wanted)


def test_every_class_is_drawn_equally_often():
    drawn = np.zeros(30)
    for step in range(4000):
        drawn[Sample(30, 9, int(mix(1, step)) >> 1).members(np.arange(9))] += 1
    # the deviation of 4000 draws with probability 0.3 is 29
    assert np.abs(drawn - 1200).max() < 4 * 29


def test_a_refused_step_changes_nothing():
    head = partial("am")
    before = head.weights.clone()
    head.settings = replace(head.settings, workspace_bytes=1)
    head.loss(*next(batches()))
    head.step(applied=False, learning_rate=0.1)
    assert torch.equal(head.weights, before) and not head.optimizer.state["velocity"].any()
