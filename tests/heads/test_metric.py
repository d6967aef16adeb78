"""The metric losses on 1, 2 and 3 ranks against plain loops over pairs and triplets in fp64."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import LpDistance

from ffc_ds.config.settings import HeadConfig
from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.metric import Metric, semi_hard_triplets
from tests.ranks import run_ranks

LOSSES = ["triplet", "npair", "multi_similarity"]
DIM, ROWS, BATCHES = 8, 18, 3


def head_of(loss):
    return Metric(HeadConfig(name="metric", metric_loss=loss, scale=16.0))


def batches():
    """Features around a center for each identity; some identities have one image, the largest seven or more."""
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        labels = np.minimum(rng.integers(0, 20, (2, ROWS)), 14)
        features = rng.standard_normal((20, DIM))[labels] + 0.7 * rng.standard_normal((2, ROWS, DIM))
        yield torch.from_numpy(features).float(), labels


def run_sharded():
    results = []
    part = ROWS // world_size()
    mine = slice(rank() * part, (rank() + 1) * part)
    for loss_name in LOSSES:
        head = head_of(loss_name)
        for features, labels in batches():
            own = features[:, mine].clone().requires_grad_()
            loss, _ = head.loss(own, labels)
            results.append((loss.item(), torch.autograd.grad(loss, own)[0] / world_size()))
            head.step(applied=True, learning_rate=0.1)
    return results


def triplet(x, labels):
    losses = []
    for a, p, n in np.ndindex(len(x), len(x), len(x)):
        if a == p or labels[a] != labels[p] or labels[a] == labels[n]:
            continue
        gap = ((x[a] - x[n]) ** 2).sum() - ((x[a] - x[p]) ** 2).sum()
        if 0 < gap < 0.2:
            losses.append(0.2 - gap)
    return sum(losses) / len(losses)


def npair(x, labels):
    pairs = [np.flatnonzero(labels == label)[:2] for label in np.unique(labels) if (labels == label).sum() > 1]
    losses = []
    for i, (anchor, positive) in enumerate(pairs):
        others = [16 * x[anchor] @ (x[other] - x[positive]) for j, (_, other) in enumerate(pairs) if j != i]
        losses.append((1 + sum(other.exp() for other in others)).log())
    return sum(losses) / len(losses)


def multi_similarity(x, labels):
    losses, zero = [], torch.zeros(())
    for a in range(len(x)):
        cosines = {i: x[a] @ x[i] for i in range(len(x)) if i != a}
        positives = [c for i, c in cosines.items() if labels[i] == labels[a]]
        negatives = [c for i, c in cosines.items() if labels[i] != labels[a]]
        hard_positives = [c for c in positives if c - 0.1 < max(negatives)]
        hard_negatives = [c for c in negatives if positives and c + 0.1 > min(positives)]
        losses.append((1 + sum(((-2 * (c - 0.5)).exp() for c in hard_positives), zero)).log() / 2)
        losses.append((1 + sum(((50 * (c - 0.5)).exp() for c in hard_negatives), zero)).log() / 50)
    return sum(losses) / len(x)


def run_densely():
    for loss_of in (triplet, npair, multi_similarity):
        for features, labels in batches():
            features = features.double().requires_grad_()
            loss = loss_of(F.normalize(features.flatten(0, 1), dim=1), labels.reshape(-1))
            yield loss.item(), torch.autograd.grad(loss, features)[0].float()


@pytest.fixture(scope="module")
def dense():
    return list(run_densely())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sharded_equals_dense(world, dense):
    ranks = run_ranks(world, run_sharded) if world > 1 else [run_sharded()]
    for case, (loss, grad) in enumerate(dense):
        assert loss > 0 and len({result[case][0] for result in ranks}) == 1
        np.testing.assert_allclose(ranks[0][case][0], loss, rtol=1e-5)
        torch.testing.assert_close(torch.cat([result[case][1] for result in ranks], 1), grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_triplets_are_those_of_the_library(seed):
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(60, 6, generator=generator))
    labels = torch.randint(0, 25, (60,), generator=generator)
    squared = LpDistance(power=2, normalize_embeddings=False)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=squared)
    expected = miner(features, labels)
    assert len(expected[0]) > 100
    assert all(torch.equal(a, b) for a, b in zip(semi_hard_triplets(features, labels), expected, strict=True))


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("labels", [np.arange(8), np.zeros(8, np.int64), np.arange(8) // 2])
def test_nothing_to_learn_is_zero(loss_name, labels):
    # All images of other identities, all of one, or all pairs equal and orthogonal to the others.
    features = (30 * torch.eye(8)[labels]).reshape(2, 4, 8).requires_grad_()
    loss, parts = head_of(loss_name).loss(features, labels.reshape(2, 4))
    (grad,) = torch.autograd.grad(loss, features)
    assert loss.item() == pytest.approx(0, abs=1e-5) and grad.abs().max() < 1e-5
    assert parts.get("active", 0) == 0


def test_active_is_the_share_of_images_in_triplets():
    # Squared distances to the anchor 0: 0.02 to its positive 1, about 0.1 to 2, 2 to 3; 3 has no positive.
    angles = torch.tensor([0.0, 0.1415, 0.32, math.pi / 2])
    features = torch.stack([angles.cos(), angles.sin()], 1).reshape(2, 2, 2)
    _, parts = head_of("triplet").loss(features, np.array([[0, 0], [1, 2]]))
    assert parts["active"] == 0.75


@pytest.mark.parametrize("loss_name", LOSSES)
def test_chance_plays_no_part(loss_name):
    features, labels = next(batches())
    before = torch.get_rng_state()
    first, _ = head_of(loss_name).loss(features, labels)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(first, head_of(loss_name).loss(features, labels)[0])


@pytest.mark.parametrize("loss_name", LOSSES)
def test_a_broken_feature_is_not_passed_over(loss_name):
    features, labels = next(batches())
    features[1, 3, 2] = torch.nan
    loss, _ = head_of(loss_name).loss(features.requires_grad_(), labels)
    assert not torch.autograd.grad(loss, features)[0].isfinite().all()


def test_low_precision_and_no_class_state():
    head = head_of("multi_similarity")
    features, labels = next(batches())
    loss, _ = head.loss(features.bfloat16(), labels)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert head.shards() == {} and head.host_state() == {} and not head.wants_gallery


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(UserError, match=r'pip install "ffc_ds\[metric\]"'):
        head_of("triplet")
