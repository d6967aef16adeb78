"""Every margin on 1, 2 and 3 ranks, over micro-batches and sub-centers, against its definition by autograd, written out
densely; and the state that some keep."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import rank, world_size
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.heads.margins import Rows, make_margin
from ffc_ds.heads.partial_fc import PartialFC
from ffc_ds.heads.virtual_fc import VirtualFC
from tests.heads.test_partial_fc import sample_of
from tests.ranks import run_ranks

CLASSES, DIM, ROWS, STEPS, SCALE = 200, 8, 12, 3, 16.0
CPU, OPTIM = torch.device("cpu"), ClassOptimConfig(lr_factor=0.5)
CASES = {
    "adaface": {"margin": "adaface", "adaface_t_alpha": 0.3},
    "curricular": {"margin": "curricular"},
    "magface": {"margin": "magface"},
    "magface, guarded": {"margin": "magface", "magface_form": "guarded", "magface_bounds": [2.0, 40.0]},
    "magface on the cosine": {"margin": "magface", "magface_form": "cosine", "magface_bounds": [1.0, 20.0]},
    "sphereface": {"margin": "sphereface"},
    "sphereface_r": {"margin": "sphereface_r"},
    "sphereface_r v1": {"margin": "sphereface_r", "sphereface_version": 1},
    "elastic_arc": {"margin": "elastic_arc", "elastic_std": 0.2},
    "elastic_cos_plus": {"margin": "elastic_cos_plus", "elastic_std": 0.2},
    "sub-centers": {"margin": "arc", "sub_centers": 3},
    "sub-centers, adaface, filtered": {"margin": "adaface", "sub_centers": 2, "interclass_filter": 0.5},
    "sub-centers, curricular": {"margin": "curricular", "sub_centers": 2},
    "sub-centers, sphereface": {"margin": "sphereface", "sub_centers": 2},
}


def head_of(case, kind=FullFC, accumulation=1, **others):
    config = HeadConfig(name="full_fc", scale=SCALE, **CASES[case] | others)
    return kind(config, OPTIM, CLASSES, DIM, CPU, accumulation=accumulation)


def batches():
    """Embeddings of lengths from 0.1 to 100; in each step a row on its class's side and one far from it."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        features = rng.standard_normal((2, ROWS, DIM)) * np.exp(rng.uniform(-3, 3.5, (2, ROWS, 1)))
        yield torch.from_numpy(features).float(), rng.integers(0, CLASSES, (2, ROWS))


def micro_batches(data, accumulation):
    for features, labels in data:
        yield list(zip(np.split(features, accumulation, 1), np.split(labels, accumulation, 1), strict=True))


def train(head, workspace_bytes, accumulation=1):
    """Losses and gradients of the features of this rank by micro-batch, weights and state at the end."""
    losses, grads = [], []
    head.settings = replace(head.settings, workspace_bytes=workspace_bytes)
    for step in micro_batches(batches(), accumulation):
        for features, labels in step:
            part = labels.shape[1] // world_size()
            own = features[:, rank() * part : (rank() + 1) * part].clone().requires_grad_()
            loss, _ = head.loss(own, labels)
            losses.append(loss.item())
            grads.append(torch.autograd.grad(loss, own)[0] / world_size())
        head.step(applied=True, learning_rate=0.1)
    return losses, grads, head.weights, head.state.settled


class Definition:
    """The loss of a margin from its paper, with all classes at once; see docs/heads/margins.md."""

    def __init__(self, config, margin):
        self.config, self.margin, self.step, self.seen = config, margin, 0, []
        self.state = dict(margin.state)

    def loss(self, features, labels, weights, columns_before=0):
        x, y = features.flatten(0, 1), torch.from_numpy(labels).flatten()
        norms, own = x.norm(dim=1), (torch.arange(len(x)), y)
        w = F.normalize(weights.reshape(-1, DIM), dim=1)
        if self.margin.unit_rows:  # they are unit vectors; the gradient is by them as they are
            w = weights.reshape(-1, DIM)
        cosines = (F.normalize(x, dim=1) @ w.T).view(len(x), -1, self.config.sub_centers).amax(2)
        places = range(columns_before, columns_before + labels.shape[1])
        self.draws = self.margin.draw(0, self.step, len(labels), places)
        filtered = cosines > (self.config.interclass_filter or math.inf)
        logits = getattr(self, self.config.margin.split("_")[0])(cosines, own, norms)
        filtered[own] = False
        return self.finish(logits.masked_fill(filtered, -torch.inf), y, norms)

    def finish(self, logits, y, norms):
        loss = F.cross_entropy(SCALE * logits, y)
        if self.config.margin == "sphereface_r":
            return 50 / SCALE * loss
        if self.config.margin == "magface":
            low, high = self.margin.bounds
            a = norms.clamp(low, high)
            return loss + 35 * (a / high**2 + 1 / a).mean()
        return loss

    def follow(self, name, weight, value):
        return (1 - weight) * self.state[name] + weight * value

    def arc(self, cosines, own, norms, m=0.5):
        t = cosines[own]
        value = torch.where(t < -math.cos(m), t - m * math.sin(m), torch.cos(torch.acos(t) + m))
        return cosines.index_put(own, value)

    def adaface(self, cosines, own, norms):
        eps, alpha, m = 1e-3, self.margin.t_alpha, 0.4
        self.seen.append(norms.detach().clamp(1e-3, 100))
        r = torch.cat(self.seen)
        self.now = {
            "batch_mean": self.follow("batch_mean", alpha, r.mean().item()),
            "batch_std": self.follow("batch_std", alpha, r.std().item()),
        }
        k = ((self.seen[-1] - self.now["batch_mean"]) / (self.now["batch_std"] + eps) * 0.333).clamp(-1, 1)
        cosines = cosines.clamp(eps - 1, 1 - eps)
        angle = (cosines[own].acos() - m * k).clamp(eps, math.pi - eps)
        return cosines.index_put(own, angle.cos() - m - m * k)

    def curricular(self, cosines, own, norms):
        v = cosines[own].detach()
        self.seen.append(v)
        self.now = {"t": self.follow("t", 0.01, torch.cat(self.seen).mean().item())}
        hard = cosines.detach() > torch.cos(torch.acos(v) + 0.5)[:, None]
        pushed = torch.where(hard, cosines * (self.now["t"] + cosines), cosines)
        return pushed.index_put(own, self.arc(cosines, own, norms)[own])

    def magface(self, cosines, own, norms):
        (low, high), (least, most) = self.margin.bounds, self.margin.margins
        m = (most - least) / (high - low) * (norms.clamp(low, high) - low) + least
        t, form = cosines[own], self.margin.form
        on_angle = torch.cos(torch.acos(t) + m)
        easy = torch.where(t > 0, on_angle, t)
        guarded = torch.where(t > torch.cos(math.pi - m), on_angle, t - m * torch.sin(math.pi - m))
        return cosines.index_put(own, {"easy": easy, "guarded": guarded, "cosine": t - m}[form])

    def sphereface(self, cosines, own, norms):
        m, theta = self.margin.margin, cosines.detach().clamp(1e-5 - 1, 1 - 1e-5).acos()
        value = cosines.detach().clone()
        if self.config.margin == "sphereface":
            k = (m * theta[own] / math.pi).floor()
            value[own] = (-1) ** k * torch.cos(m * theta[own]) - 2 * k
        elif self.margin.version == 1:
            value[own] = torch.cos((m * theta[own]).clamp(max=math.pi))
        else:
            value = torch.cos(theta / m).index_put(own, value[own])
        return cosines + (value - cosines).detach()

    def elastic(self, cosines, own, norms):
        margins = self.margin.margin + self.margin.std * torch.from_numpy(self.draws)
        t = cosines[own]
        if self.margin.plus:
            order = np.argsort(-t.detach().numpy(), kind="stable")
            margins = margins.sort().values[order]
        return cosines.index_put(own, torch.cos(torch.acos(t) + margins) if self.margin.on_angle else t - margins)

    def end_step(self):
        self.state = self.now if self.seen else self.state
        self.seen, self.step = [], self.step + 1


def all_classes(step, labels):
    return np.arange(CLASSES)


@functools.cache
def run_densely(case, accumulation, rows_of):
    """As `train`; `rows_of`: the classes that a step looks at and trains, for its labels."""
    head = head_of(case)
    slow = Definition(head.config, head.margin)
    weights, velocity, losses, grads = head.weights.clone(), torch.zeros_like(head.weights), [], []
    for number, step in enumerate(micro_batches(batches(), accumulation)):
        trained = np.unique(np.concatenate([rows_of(number, labels) for _, labels in step]))
        total = weights.clone().requires_grad_()
        before = 0
        for features, labels in step:
            features = features.clone().requires_grad_()
            rows = rows_of(number, labels)
            loss = slow.loss(features, np.searchsorted(rows, labels), total[rows], before)
            (loss / accumulation).backward()
            losses.append(loss.item())
            grads.append(features.grad * accumulation)
            before += labels.shape[1]
        slow.end_step()
        velocity[trained] = 0.9 * velocity[trained] + total.grad[trained] + 5e-4 * weights[trained]
        moved = weights[trained] - 0.05 * velocity[trained]
        weights[trained] = F.normalize(moved.view(-1, DIM)).view_as(moved) if head.margin.unit_rows else moved
    return losses, grads, weights, torch.tensor(list(slow.state.values()), dtype=torch.float64)


def assert_same(ranks, reference, case):
    losses, grads, weights, state = reference
    for found in ranks:
        np.testing.assert_allclose(found[0], losses, rtol=1e-5, err_msg=case)
        torch.testing.assert_close(found[3], state, rtol=1e-6, atol=1e-7)
        assert torch.equal(found[3], ranks[0][3])
    for step, grad in enumerate(grads):
        found = torch.cat([each[1][step] for each in ranks], 1)
        largest = grad.flatten(0, 1).abs().amax(1).view(*grad.shape[:2], 1)
        assert ((found - grad).abs() <= 1e-5 + 2e-4 * largest).all(), (case, step, (found - grad).abs().max())
    torch.testing.assert_close(torch.cat([each[2] for each in ranks]), weights, rtol=1e-4, atol=1e-5, msg=case)


def run_sharded(workspace_bytes, accumulation):
    full = {case: train(head_of(case), workspace_bytes, accumulation) for case in CASES}
    sampled = {case: train(head_of(case, PartialFC), workspace_bytes, accumulation) for case in CASES}
    return full, sampled


@pytest.mark.parametrize(("world", "workspace_bytes", "accumulation"), [(1, 1, 2), (2, 1 << 20, 1), (3, 1, 2)])
def test_sharded_equals_dense(world, workspace_bytes, accumulation):
    """A workspace of one byte means blocks of 64 classes, and logits that are worked out again."""
    results = run_ranks(world, run_sharded, workspace_bytes, accumulation)
    for case in CASES:
        assert_same([full[case] for full, _ in results], run_densely(case, accumulation, all_classes), case)
        sampled = run_densely(case, accumulation, sample_of)
        assert_same([found[case] for _, found in results], sampled, f"partial_fc, {case}")


@pytest.mark.parametrize("settings", [{"margin": "combined"}, {"margin": "sv"}, *CASES.values()], ids=str)
def test_slopes_are_those_of_the_values(settings):
    """By differences, for target and others, up to the clamps near 1 and -1; papers detach SphereFace's."""
    margin = make_margin(HeadConfig(**settings))
    cosine, h = torch.linspace(-0.99995, 0.99995, 400, dtype=torch.float64), 1e-7
    norms, draws = torch.full_like(cosine, 15.0), torch.full_like(cosine, 0.3)
    rows = Rows(torch.full_like(cosine, 0.4), norms, draws, torch.tensor([12.0, 9.0]).double()[: len(margin.state)])
    if margin.unit_rows or getattr(margin, "plus", False):
        return
    functions = [lambda c: margin.target(c, rows)]
    if margin.changes_negatives:
        one = replace(rows, target=rows.target[:1])
        functions.append(lambda c: [each[0] for each in margin.negatives(c[None].clone(), one)])
    for function in functions:
        found = (function(cosine + h)[0] - function(cosine - h)[0]) / (2 * h)
        torch.testing.assert_close(function(cosine)[1].double(), found, rtol=1e-4, atol=1e-4)


def test_accumulation_leaves_the_state_of_the_whole_batch():
    for case in ("adaface", "curricular"):
        split, whole = head_of(case, accumulation=3), head_of(case)
        (features, labels), *_ = batches()
        for step in micro_batches([(features, labels)], 3):
            for part in step:
                split.loss(*part)
        whole.loss(features, labels)
        for head in (split, whole):
            head.step(applied=True, learning_rate=0.0)
        torch.testing.assert_close(split.state.settled, whole.state.settled, rtol=1e-6, atol=0, msg=case)


def test_draws_follow_from_seed_and_place_alone():
    margin = make_margin(HeadConfig(margin="elastic_arc"))
    whole = margin.draw(3, 5, 2, range(12)).reshape(2, 12)
    parts = [margin.draw(3, 5, 2, range(start, start + 4)).reshape(2, 4) for start in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    for other in (margin.draw(4, 5, 2, range(12)), margin.draw(3, 6, 2, range(12))):
        assert not np.intersect1d(other, whole).size
    many = margin.draw(0, 0, 2, range(50_000))
    # of 100,000 draws the mean deviates by 0.0032, the deviation by 0.0022
    assert abs(many.mean()) < 0.013 and abs(many.std() - 1) < 0.009


@pytest.mark.parametrize("case", ["adaface", "curricular", "elastic_cos_plus", "sphereface"])
def test_a_refused_step_changes_nothing_and_a_resumed_run_goes_on(case):
    went_on, resumed = head_of(case), head_of(case)
    data = list(batches())
    for features, labels in data[:2]:
        went_on.loss(features, labels)
        went_on.step(applied=True, learning_rate=0.1)
    kept = went_on.state.settled.clone(), went_on.weights.clone(), went_on.checksum()
    went_on.loss(1e30 * data[2][0], data[2][1])
    went_on.step(applied=False, learning_rate=0.1)
    assert torch.equal(went_on.state.settled, kept[0]) and torch.equal(went_on.weights, kept[1])
    resumed.load_host_state({name: array.copy() for name, array in went_on.host_state().items()})
    for name, shard in resumed.shards().items():
        shard.local.copy_(went_on.shards()[name].local)
    assert went_on.checksum() == resumed.checksum() == kept[2] and (not kept[2]) == (not len(kept[0]))
    for head in (went_on, resumed):
        head.loss(*data[2])[0].item()
        head.step(applied=True, learning_rate=0.1)
    assert torch.equal(went_on.weights, resumed.weights)
    assert torch.equal(went_on.state.settled, resumed.state.settled)


def test_odd_rows_stay_finite():
    """A batch of one, embeddings of length zero, and rows exactly on their class or opposite to it."""
    for case in CASES:
        head = head_of(case)
        place = 2 * (case != "sub-centers")
        features = torch.zeros(2, 3, DIM)
        features[0, 1], features[1, 1] = head.weights[5, :DIM], -head.weights[6, :DIM]
        features[1, 2] = 1e-20
        labels = np.array([[4, 5, place], [9, 6, 7]])
        for rows in (slice(0, 3), slice(1, 2)):
            part = features[:1, rows] if rows.start else features[:, rows]
            own = part.clone().requires_grad_()
            loss, _ = head.loss(own, labels[: len(part), rows])
            loss.backward()
            head.step(applied=True, learning_rate=0.1)
            assert own.grad.isfinite().all() and head.weights.isfinite().all(), case
            assert head.state.settled.isfinite().all(), case


def test_virtual_fc_takes_margins_with_state_and_norms():
    """Two images of each identity, which have an anchor each: a softmax with the means of the batch in their places."""
    for case in ("adaface", "magface", "sphereface_r", "elastic_arc", "curricular"):
        head = head_of(case, VirtualFC)
        features, labels = next(batches())[0].requires_grad_(), np.tile(7 * np.arange(ROWS), (2, 1))
        loss, _ = head.loss(features, labels)
        loss.backward()
        (micro,) = head.micro_batches
        present = head.weights.clone()
        present[labels[0]] = micro.columns[1].weights
        again = features.detach().requires_grad_()
        expected = Definition(head.config, head.margin).loss(again, labels, present)
        expected.backward()
        np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-5, err_msg=case)
        torch.testing.assert_close(features.grad, again.grad, rtol=1e-3, atol=1e-5)
