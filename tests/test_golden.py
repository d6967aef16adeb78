"""Replays recorded traces of the published codes, if GOLDEN_DIR names a folder with them (`make test-golden`)."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import all_reduce, rank, world_size
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.heads.lru_pool import LRUPool
from tests.ranks import run_ranks

FOLDER = os.environ.get("GOLDEN_DIR")
if FOLDER is not None and not sorted(Path(FOLDER).glob("golden_*.npz")):
    raise FileNotFoundError(f"GOLDEN_DIR={FOLDER} holds no golden_*.npz")


def traces(pattern):
    if FOLDER is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason="GOLDEN_DIR is not set"))]
    return [pytest.param(path, id=path.stem) for path in sorted(Path(FOLDER).glob(pattern))]


def first_traces(pattern):
    return [] if FOLDER is None else sorted(Path(FOLDER).glob(pattern))[:1]


def close(actual, expected, what, tolerance=1e-4):
    """Relative to the largest number of the array."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    bound = tolerance * max(np.abs(expected).max(), 1e-6)
    worst = np.abs(actual - expected).max()
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def replay_head(trace):
    meta = {key.removeprefix("meta_"): trace[key].item() for key in trace if key.startswith("meta_")}
    config = HeadConfig(
        group_size=2,
        margin=meta["loss_type"].lower(),
        margin_strength=meta["margin"],
        scale=meta["scale"],
        hide_unfilled=False,
        own_rows_only=False,
        arc_guard=False,
        loss_terms="sum",
    )
    head = LRUPool(config, meta["queue_size"], meta["feat_dim"], torch.device("cpu"))
    assert head.settings.hard_negatives == meta["hard_neg"]
    assert getattr(head.settings.margin, "mask", meta["mask_svfc"]) == meta["mask_svfc"]
    head.storage.features.copy_(torch.from_numpy(trace["queue_init"]))
    return head, meta


def same_lru(head, keys, slots, held, padded=-1):
    newest_first = head.index.order()[::-1]
    assert len(newest_first) == held
    np.testing.assert_array_equal(newest_first, slots[:held])
    np.testing.assert_array_equal(head.index.identity[newest_first], keys[:held])
    assert (slots[held:] == padded).all() and (keys[held:] == padded).all()


def check_pass(head, trace, t, tag, probes, probe_identities, features, gallery_identities):
    """One pass by itself, everything that is recorded inside it, and back to where it began."""
    recorded = {key.removeprefix(tag): trace[key][t] for key in trace if key.startswith(tag)}
    mark = head.index.mark(), head.storage.mark()
    loss, _ = head._pass(probes, probe_identities, features, gallery_identities)
    head.index.undo(mark[0])
    head.storage.undo(mark[1])
    close(loss.item(), recorded["loss"], f"{tag}loss at step {t}")

    taken = head._take_in(gallery_identities, features)
    columns = head._columns(taken.hit)
    np.testing.assert_array_equal(taken.rows, recorded["rows"])
    np.testing.assert_array_equal(taken.slots, recorded["cols"])
    np.testing.assert_array_equal(np.isin(np.arange(head.index.capacity), taken.hit), recorded["hit"] == 1)
    np.testing.assert_array_equal(head.index.find(probe_identities), recorded["label"])
    np.testing.assert_array_equal(head.index.position, recorded["qpos"])
    same_lru(head, recorded["lru_key"], recorded["lru_slot"], (recorded["lru_slot"] >= 0).sum())
    second = columns.weights.clone()
    second[columns.special] = columns.variants[1]
    found = {"p": probes, "g": features, "queue": head.storage.features}
    found |= {"cos1": probes @ columns.weights.T, "cos2": probes @ second.T}
    for name, array in found.items():
        close(array.detach(), recorded[name], f"{tag}{name} at step {t}")
    assert set(recorded) == {*found, "loss", "rows", "cols", "hit", "label", "qpos", "lru_key", "lru_slot"}
    head.index.undo(mark[0])
    head.storage.undo(mark[1])


def replay(trace):
    torch.set_num_threads(1)
    head, meta = replay_head(trace)
    assert trace["x"].shape == (meta["steps"], meta["n_id"] + meta["n_inst"], meta["in_dim"])
    assert (trace["x_label"][:, : meta["n_id"]] == trace["y_label"][:, : meta["n_id"]]).all()
    assert max(trace["x_label"].max(), trace["y_label"].max()) < meta["num_ids"]
    probe = torch.nn.Parameter(torch.from_numpy(trace["probe_w_init"].copy()))
    gallery = torch.from_numpy(trace["gallery_w_init"].copy())
    for t in range(meta["steps"]):
        images = torch.from_numpy(np.stack([trace["x"][t], trace["y"][t]]))
        x_label, y_label = trace["x_label"][t], trace["y_label"][t]
        gallery.lerp_(probe.detach(), 1 - meta["momentum"])
        p, g = (F.normalize(images @ weight.T, dim=-1) for weight in (probe, gallery))
        check_pass(head, trace, t, "rb_", p[0], x_label, g[1], y_label)
        check_pass(head, trace, t, "cm_", p[1], y_label, g[0], x_label)
        loss, _ = head.loss(p, np.stack([x_label, y_label]), g)
        (grad,) = torch.autograd.grad(loss, probe)
        with torch.no_grad():
            probe -= meta["lr"] * grad
        head.step(applied=True, learning_rate=meta["lr"])

        close(loss.item(), trace["loss"][t], f"loss at step {t}")
        close(grad, trace["grad_w"][t], f"gradient at step {t}")
        same_lru(head, trace["lru_key"][t], trace["lru_slot"][t], trace["lru_len"][t])
        np.testing.assert_array_equal(head.index.position, trace["qpos"][t])
        close(head.storage.features, trace["queue"][t], f"pool at step {t}")
        close(gallery, trace["gallery_w"][t], f"gallery weights at step {t}")
        close(probe.detach(), trace["probe_w"][t], f"probe weights at step {t}")


@pytest.mark.parametrize("path", traces("golden_ffc_*.npz"))
def test_ffc_follows_the_released_code(path):
    replay(dict(np.load(path)))


def softmax_of(trace, meta):
    m1, m2, m3 = (float(m) for m in meta["margins"])
    assert m1 == 1.0 and 0.0 in (m2, m3)
    margin = {"margin": "am", "margin_strength": m3} if m3 else {"margin": "arc", "margin_strength": m2}
    config = HeadConfig(scale=meta["s"], straight_through=True, arc_guard=False, **margin)
    optim = ClassOptimConfig("sgd", momentum=meta["momentum"], weight_decay=meta["weight_decay"])
    classes, dim = trace["weight_init"].shape
    head = FullFC(config, optim, classes, dim, torch.device("cpu"))
    assert trace["class_start"][rank()] == head.start and trace["num_local"][rank()] == head.end - head.start
    head.weights.copy_(torch.from_numpy(trace["weight_init"][head.start : head.end]))
    return head


def replay_softmax(trace):
    """On as many ranks as the trace has; a mismatch is raised on the rank that sees it."""
    torch.set_num_threads(1)
    meta = {key.removeprefix("meta_"): trace[key] for key in trace if key.startswith("meta_")}
    meta |= {key: value.item() for key, value in meta.items() if value.size == 1}
    head = softmax_of(trace, meta)
    own = slice(head.start, head.end)
    linear = torch.nn.Parameter(torch.from_numpy(trace["lin_w_init"].copy()))
    backbone = torch.optim.SGD(
        [linear], lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"], foreach=False
    )
    for t, images in enumerate(trace["x"]):
        embeddings = torch.from_numpy(images[rank()]) @ linear.T
        embeddings.retain_grad()
        views = trace["labels"][t].reshape(world_size(), 2, -1).transpose(1, 0, 2).reshape(2, -1)
        loss, _ = head.loss(embeddings.unflatten(0, (2, -1)), views)
        loss.backward()
        all_reduce(linear.grad).div_(world_size())
        (micro,) = head.micro_batches
        # the released code reports no loss beyond that of a probability of 1e-30
        close(micro.losses.clamp_max(-np.log(1e-30)).mean(), trace["loss"][t, rank()], f"loss at step {t}")
        grads = [micro.class_gradient(0, block, head.weights[block]).clone() for block in micro.blocks(0)]
        close(torch.cat(grads), trace["weight_grad"][t, own], f"class gradient at step {t}")
        close(embeddings.detach(), trace["emb"][t, rank()], f"embeddings at step {t}")
        close(embeddings.grad, trace["emb_grad"][t, rank()], f"gradient of the embeddings at step {t}")
        close(linear.grad, trace["lin_w_grad"][t, rank()], f"gradient of the net at step {t}")
        backbone.step()
        backbone.zero_grad()
        head.step(applied=True, learning_rate=meta["lr"])
        close(head.weights, trace["weight"][t, own], f"class weights at step {t}")
        close(linear.detach(), trace["lin_w"][t, rank()], f"net at step {t}")
    close(head.weights, trace[f"final_weight_rank{rank()}"], "class weights at the end")
    close(linear.detach(), trace["final_lin_w"], "net at the end")


@pytest.mark.parametrize("path", traces("golden_pfc_*.npz"))
def test_partial_fc_follows_the_released_code(path):
    trace = dict(np.load(path))
    run_ranks(trace["x"].shape[1], replay_softmax, trace)


def changes(trace, free):
    """The trace with one number changed, array by array."""
    for name in sorted(trace.keys() - free):
        changed = dict(trace) | {name: trace[name].copy()}
        cell = tuple(length // 2 for length in trace[name].shape)
        changed[name][cell] += 1 if trace[name].dtype.kind == "i" else 0.01 * max(np.abs(trace[name]).max(), 1)
        yield name, changed


@pytest.mark.parametrize(
    ("path", "again", "free"),
    [
        # an upper bound, and a setting of another loss
        *((p, replay, {"meta_num_ids", "meta_mask_svfc", "meta_loss_type"}) for p in first_traces("golden_ffc_*.npz")),
        *((p, replay_softmax, set()) for p in first_traces("golden_pfc_*_w1*.npz")),
    ]
    or [pytest.param(None, None, None, marks=pytest.mark.skip(reason="GOLDEN_DIR is not set"))],
)
def test_one_changed_number_is_noticed(path, again, free):
    for name, changed in changes(dict(np.load(path)), free):
        try:
            again(changed)
        except (AssertionError, IndexError, RuntimeError, ValueError):
            continue
        pytest.fail(f"a changed {name} went unnoticed")
