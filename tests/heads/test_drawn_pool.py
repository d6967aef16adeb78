"""The drawn pool on 1, 2 and 3 ranks and over micro-batches, against its definition, dense and by autograd."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import HeadConfig
from ffc_ds.data.randomness import mix
from ffc_ds.distributed import rank, world_size
from ffc_ds.heads.drawn_pool import DrawnPool
from ffc_ds.heads.sampled_rows import Sample
from tests.ranks import run_ranks

IDENTITIES, DIM, ROWS, STEPS = 90, 8, 12, 4
SCALE, MARGIN, SHARE = 16.0, 0.2, 0.3
SEED, POOL, MOMENTUM = 3, 27, 0.7
REFUSED = 2  # this step is not applied
CPU = torch.device("cpu")


def head_of(accumulation=1, **others):
    config = HeadConfig(
        pool_size=SHARE, scale=SCALE, margin_strength=MARGIN, prefill=0.5, center_momentum=MOMENTUM, **others
    )
    return DrawnPool(config, IDENTITIES, DIM, CPU, seed=SEED, accumulation=accumulation)


def batches():
    """Features of both nets, and identities of which some come several times in a step, in either view."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        probe, gallery = torch.from_numpy(rng.standard_normal((2, 2, ROWS, DIM))).float()
        yield probe, gallery, rng.integers(0, IDENTITIES, (2, ROWS)) // 3 * rng.integers(1, 4, (2, ROWS)) % IDENTITIES


def filling():
    rng = np.random.default_rng(1)
    return rng.permutation(IDENTITIES)[:45], torch.from_numpy(rng.standard_normal((45, DIM))).float()


@functools.cache
def by_definition(accumulation, of_probe=False):
    """Losses, gradients of the features and the centers at the end, in float64."""
    centers = head_of().weights.double()
    identities, features = filling()
    centers[identities] = F.normalize(features.double(), dim=1)
    losses, grads = [], []
    for step, (probe, gallery, labels) in enumerate(batches()):
        sample = Sample(IDENTITIES, POOL, int(mix(SEED, step)) >> 1).members(np.arange(POOL))
        for micro in np.split(np.arange(ROWS), accumulation):
            own = probe[:, micro].double().requires_grad_()
            rows, of_whom = F.normalize(own.flatten(0, 1), dim=1), labels[:, micro].flatten()
            pool = np.union1d(sample, of_whom)
            cosines = rows @ F.normalize(centers[pool], dim=1).T
            column = torch.from_numpy(np.searchsorted(pool, of_whom))
            logits = SCALE * (cosines - MARGIN * F.one_hot(column, len(pool)))
            loss = F.cross_entropy(logits, column)
            losses.append(loss.item())
            grads.append(torch.autograd.grad(loss, own)[0])
        writes = probe if of_probe else gallery
        if step != REFUSED:
            for identity in np.unique(labels):
                newest = F.normalize(writes.double(), dim=2)[torch.from_numpy(labels == identity)]
                momentum = MOMENTUM * (centers[identity].norm() > 0.5)  # others have no feature yet
                average = momentum * centers[identity] + (1 - momentum) * F.normalize(newest.sum(0), dim=0)
                centers[identity] = F.normalize(average, dim=0)
    return losses, grads, centers


def by_ranks(accumulation, of_probe=False, **others):
    head = head_of(accumulation, **others)
    assert head.prefill_identities == 45
    head.prefill(*filling())
    losses, grads = [], []
    for step, (probe, gallery, labels) in enumerate(batches()):
        for micro in np.split(np.arange(ROWS), accumulation):
            part = len(micro) // world_size()
            mine = micro[rank() * part : (rank() + 1) * part]
            own = probe[:, mine].clone().requires_grad_()
            loss, _ = head.loss(own, labels[:, micro], None if of_probe else 7 * gallery[:, mine])  # of any length
            losses.append(loss.item())
            grads.append(torch.autograd.grad(loss, own)[0] / world_size())
        head.step(applied=step != REFUSED, learning_rate=0.1)
    return losses, grads, head.weights


@pytest.mark.parametrize(("world", "accumulation", "of_probe"), [(1, 1, True), (2, 1, False), (3, 2, True)])
def test_sharded_is_dense(world, accumulation, of_probe):
    found = run_ranks(world, by_ranks, accumulation, of_probe)
    losses, grads, centers = by_definition(accumulation, of_probe)
    for of_rank in found:
        torch.testing.assert_close(of_rank[0], losses, rtol=1e-5, atol=1e-5)
    for number, expected in enumerate(grads):
        whole = torch.cat([of_rank[1][number] for of_rank in found], dim=1)
        torch.testing.assert_close(whole.double(), expected, rtol=1e-4, atol=1e-6)
    whole = torch.cat([of_rank[2] for of_rank in found])
    torch.testing.assert_close(whole.double(), centers, rtol=1e-5, atol=1e-6)


def test_half_precision_is_near():
    losses, _, weights = by_ranks(1, dtype="bfloat16")
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(losses, by_definition(1)[0], rtol=0.02, atol=0.05)


def test_a_pool_of_a_number_and_of_everybody():
    whole = HeadConfig(pool_size=1.0)
    assert DrawnPool(HeadConfig(pool_size=20), IDENTITIES, DIM, CPU).pool == 20
    assert DrawnPool(whole, IDENTITIES, DIM, CPU).pool == IDENTITIES
    assert DrawnPool(HeadConfig(pool_size=500), IDENTITIES, DIM, CPU).pool == IDENTITIES


def test_a_center_averages_the_features_of_an_epoch():
    """Those of everybody begin alike; the same new feature moves that of few images most."""
    images = np.arange(IDENTITIES) + 1
    config = HeadConfig(pool_size=SHARE, prefill=1.0, center_momentum="auto")
    head = DrawnPool(config, IDENTITIES, DIM, CPU, images=images)
    first, newest = F.normalize(torch.randn(2, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
    head.prefill(np.arange(IDENTITIES), first.expand(IDENTITIES, DIM))
    head.steps = images.sum()  # beyond the first epoch
    labels = np.array([[0, 4, 4], [49, 49, 89]])
    head.loss(newest.expand(2, 3, DIM), labels)
    head.step(True, 0.1)
    for identity in (0, 4, 49, 89):
        momentum = (max(images[identity], 3) - 1) / (max(images[identity], 3) + 1)
        average = momentum * first + (1 - momentum) * newest
        torch.testing.assert_close(head.weights[identity], F.normalize(average, dim=0))
    assert torch.equal(head.weights[1], head.weights[2]), "nobody has seen them"


def test_in_the_first_epoch_a_center_averages_what_was_shown_so_far():
    head = DrawnPool(HeadConfig(center_momentum="auto"), IDENTITIES, DIM, CPU, images=np.full(IDENTITIES, 20))
    centers, rows = F.normalize(torch.randn(2, DIM), dim=1), torch.tensor([0, 1])
    head._seen = [(np.zeros(30, np.int64), None)]
    for epochs, momentum in ((0, 0.5), (1 / 20, 0.5), (1 / 4, 4 / 6), (1, 19 / 21), (7, 19 / 21)):
        head.steps = epochs * 20 * IDENTITIES / 30
        torch.testing.assert_close(head._momenta(rows, centers), torch.full((2, 1), momentum))


@pytest.mark.parametrize(("momentum", "dim"), [("auto", DIM), (0.9, DIM), (0.9, 512), ("auto", 3000)])
def test_a_center_that_nobody_has_seen_begins_with_its_first_feature(momentum, dim):
    config = HeadConfig(pool_size=SHARE, center_momentum=momentum)
    head = DrawnPool(config, IDENTITIES, dim, CPU, images=np.full(IDENTITIES, 50))
    features = torch.randn(2, 3, dim, generator=torch.Generator().manual_seed(2))
    head.loss(features, np.arange(6).reshape(2, 3))
    head.step(True, 0.1)
    torch.testing.assert_close(head.weights[:6], F.normalize(features.flatten(0, 1), dim=1))


def test_a_bf16_center_follows_a_long_average():
    """Its steps are too small for the nearest bf16 number to change."""
    config = HeadConfig(pool_size=SHARE, center_momentum="auto", dtype="bfloat16")
    head = DrawnPool(config, IDENTITIES, 64, CPU, images=np.full(IDENTITIES, 400))
    head.steps = 400 * IDENTITIES
    first, newest = F.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(2)), dim=1)
    head.prefill(np.arange(IDENTITIES), first.expand(IDENTITIES, 64))
    for _ in range(100):
        head.loss(newest.expand(2, 1, 64), np.array([[4], [4]]))
        head.step(True, 0.1)
    expected = first.clone()
    for _ in range(100):
        expected = F.normalize(399 * expected + 2 * newest, dim=0)
    assert F.cosine_similarity(head.weights[4].float(), expected, dim=0) > 0.999


def test_a_gallery_feature_that_is_not_finite_shows_in_loss_and_gradient():
    """Nothing else of the step depends on it, and the center would be lost."""
    head = head_of()
    probe, gallery, labels = next(iter(batches()))
    gallery[1, 3, 0] = torch.inf
    probe.requires_grad_()
    loss, _ = head.loss(probe, labels, gallery)
    loss.backward()
    assert not loss.isfinite() and not probe.grad.isfinite().any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_center_is_not_begun_with_what_is_not_finite(broken):
    head, other = head_of(), head_of()
    before, (identities, features) = head.weights.clone(), filling()
    kept = np.arange(len(identities)) != 7
    other.prefill(identities[kept], features[kept])
    features[7, 2] = broken
    head.prefill(identities, features)
    assert torch.equal(head.weights, other.weights) and torch.equal(head.weights[identities[7]], before[identities[7]])
