"""FFC on 1, 2 and 3 ranks against the definition, written out slowly and densely."""

import functools
import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import HeadConfig
from ffc_ds.distributed import rank, world_size
from ffc_ds.heads.lru_pool import LRUPool
from tests.ranks import run_ranks

DIM, STEPS, ROWS = 8, 5, 12
HARDEST = 3  # of pools below 20,000 slots
CPU = torch.device("cpu")


def settings_of(group_size=3, margin="am", **others):
    return HeadConfig(group_size=group_size, margin=margin, scale=32.0, **others)


def batches(seed, identities, duplicates):
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        labels = [rng.choice(identities, ROWS, replace=duplicates) for _ in range(2)]
        labels[1][: ROWS // 2] = labels[0][: ROWS // 2]
        probe, gallery = (torch.from_numpy(rng.standard_normal((2, ROWS, DIM))).float() for _ in range(2))
        yield probe, gallery, np.stack(labels)


class SlowFFC:
    """The pool as dictionaries, every matrix in full, gradients by autograd."""

    def __init__(self, settings, capacity):
        self.s, self.capacity = settings, capacity
        self.pool = torch.zeros(settings.group_size, capacity, DIM)
        self.lru, self.position, self.written = OrderedDict(), {}, {}

    def take_in(self, labels, features):
        hit = set()
        for label, feature in zip(labels.tolist(), features, strict=True):
            if label in self.lru:
                slot = self.lru[label]
                self.lru.move_to_end(label)
                hit.add(slot)
            else:
                slot = len(self.lru) if len(self.lru) < self.capacity else self.lru.popitem(last=False)[1]
                self.lru[label], self.position[slot], self.written[slot] = slot, 0, 0
            self.pool[self.position[slot], slot] = feature
            self.position[slot] = (self.position[slot] + 1) % self.s.group_size
            self.written[slot] = min(self.written[slot] + 1, self.s.group_size)
        return hit

    def bend(self, cosines, target):
        cosines, t = cosines.clone(), cosines[target]
        if self.s.margin == "am":
            cosines[target] = t - 0.4
        elif self.s.margin == "arc":
            beyond = t < -math.cos(0.5)
            cosines[target] = t - 0.5 * math.sin(0.5) if beyond else torch.cos(torch.acos(t) + 0.5)
        elif self.s.margin == "sphereface":
            angle = 1.7 * torch.acos(t.detach())
            k = (angle / math.pi).floor()
            cosines[target] = t + ((-1) ** k * angle.cos() - 2 * k - t).detach()
        else:
            cosines = torch.where(cosines > t.detach() - 0.4, 1.2 * cosines + 0.2, cosines)
            cosines[target] = t - 0.4 if t > 0.4 else t
        return cosines

    def one_pass(self, probes, probe_labels, features, gallery_labels):
        hit, total = self.take_in(gallery_labels, features), 0
        filled = len(self.lru) if self.s.hide_unfilled else self.capacity
        for k in range(self.s.group_size):
            centers = self.pool[0].clone()
            for slot in hit:
                if k < self.written[slot] or not self.s.own_rows_only:
                    centers[slot] = self.pool[k, slot]
            cosines = probes @ centers[:filled].T
            existing, fresh = [], []
            for row, label in zip(cosines, probe_labels.tolist(), strict=True):
                if label in self.lru:
                    logits = self.s.scale * self.bend(row, self.lru[label])
                    existing.append(F.cross_entropy(logits, torch.tensor(self.lru[label])))
                else:
                    fresh.append(row.sort(descending=True).values[:HARDEST].clamp_min(0).sum() / HARDEST)
            for part, weight in ((existing, 1), (fresh, self.s.fresh_weight)):
                total = total + weight * torch.stack(part).mean() if part else total
        return total

    def loss(self, probe, identities, gallery):
        probe, gallery = F.normalize(probe, dim=-1), F.normalize(gallery, dim=-1)
        before = self.pool.clone(), self.lru.copy(), dict(self.position), dict(self.written)
        a = self.one_pass(probe[0], identities[0], gallery[1], identities[1])
        self.pool, self.lru, self.position, self.written = before
        both = a + self.one_pass(probe[1], identities[1], gallery[0], identities[0])
        return both / (2 * self.s.group_size) if self.s.loss_terms == "mean" else both


@functools.cache
def run_slowly(case):
    settings, capacity, *data = CASES[case]
    slow, losses, grads = SlowFFC(settings, capacity), [], []
    if not settings.hide_unfilled:
        slow.pool = LRUPool(settings, capacity, DIM, CPU).storage.features
    for probe, gallery, identities in batches(*data):
        probe = probe.requires_grad_()
        loss = slow.loss(probe, identities, gallery)
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, probe)[0])
    return losses, torch.stack(grads), slow.pool, list(slow.lru.items())


def run_sharded(settings, capacity, seed, identities, duplicates):
    head = LRUPool(settings, capacity, DIM, CPU)
    losses, grads = [], []
    part = ROWS // world_size()
    mine = slice(rank() * part, (rank() + 1) * part)
    for probe, gallery, labels in batches(seed, identities, duplicates):
        own = probe[:, mine].clone().requires_grad_()
        loss, _ = head.loss(own, labels, gallery[:, mine])
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, own)[0] / world_size())
        head.step(applied=True, learning_rate=0.1)
    held = head.index.order()
    return (
        losses,
        torch.stack(grads),
        head.storage.features,
        list(zip(head.index.identity[held].tolist(), held.tolist(), strict=True)),
    )


RELEASED = {"hide_unfilled": False, "own_rows_only": False, "loss_terms": "sum"}
CASES = [
    (settings_of(group_size, margin, fresh_weight=2.0, **others), capacity, 7, identities, duplicates)
    for capacity, identities, duplicates in ((13, 30, False), (64, 40, True), (12, 20, True))
    for margin, group_size, others in (
        ("am", 3, {}),
        ("arc", 2, {}),
        ("sv", 3, {}),
        ("sv", 1, {}),
        ("am", 4, {}),
        ("am", 3, RELEASED),
        ("sv", 2, RELEASED),
    )
]
CASES += [(settings_of(2, "sphereface"), 64, 7, 40, True)]


def run_all():
    return [run_sharded(*case) for case in CASES]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sharded_equals_dense(world):
    results = run_ranks(world, run_all)
    for case in range(len(CASES)):
        losses, grads, pool, lru = run_slowly(case)
        ranks = [result[case] for result in results]
        for found in ranks:
            np.testing.assert_allclose(found[0], losses, rtol=1e-5)
            assert found[3] == lru
        torch.testing.assert_close(torch.cat([found[1] for found in ranks], 2), grads, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([found[2] for found in ranks], 1), pool, rtol=0, atol=1e-6)


def test_blocks_of_columns_give_the_same_loss_and_gradient():
    """A pool of several blocks (64 columns each) and several groups of hard negatives equals one block."""
    for margin in ("am", "sv"):
        results = []
        for workspace in (1, 64 << 20):
            head = LRUPool(settings_of(margin=margin), 2000, DIM, CPU)
            head.settings = replace(head.settings, workspace_bytes=workspace)
            rng = torch.Generator().manual_seed(3)
            head.prefill(np.arange(1500), torch.randn(1500, DIM, generator=rng))
            probe, gallery, _ = next(iter(batches(1, 5000, False)))
            identities = np.stack([np.arange(1490, 1502), np.arange(1488, 1500)])
            probe = probe.requires_grad_()
            loss, metrics = head.loss(probe, identities, gallery)
            results.append((loss, torch.autograd.grad(loss, probe)[0], metrics["loss_fresh"]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_a_refused_step_leaves_no_trace():
    head = LRUPool(settings_of(), 10, DIM, CPU)
    data = list(batches(5, 30, True))
    head.loss(data[0][0], data[0][2], data[0][1])
    head.step(applied=True, learning_rate=0.1)
    before, pool = head.host_state(), head.storage.features.clone()
    for probe, gallery, identities in data[1:3]:
        head.loss(probe, identities, gallery)
    head.step(applied=False, learning_rate=0.1)
    after = head.host_state()
    for name in before.keys() - {"steps"}:
        np.testing.assert_array_equal(before[name], after[name])
    assert torch.equal(pool, head.storage.features)


def test_one_picture_as_both_views_is_finite_with_arc():
    head = LRUPool(settings_of(margin="arc"), 20, DIM, CPU)
    feature = torch.randn(1, ROWS, DIM).expand(2, -1, -1).clone().requires_grad_()
    loss, _ = head.loss(feature, np.stack([np.arange(ROWS)] * 2), feature.detach())
    (grad,) = torch.autograd.grad(loss, feature)
    assert loss.isfinite() and grad.isfinite().all()


def test_a_bf16_pool_stays_near_fp32():
    exact, rounded = (run_sharded(settings_of(dtype=dtype), 13, 7, 30, False) for dtype in ("float32", "bfloat16"))
    assert rounded[2].dtype == torch.bfloat16
    np.testing.assert_allclose(rounded[0], exact[0], rtol=2e-2)
    assert F.cosine_similarity(rounded[1].flatten(), exact[1].flatten(), dim=0) > 0.999
    torch.testing.assert_close(rounded[2].float(), exact[2], rtol=0, atol=4e-3)
