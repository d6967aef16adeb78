"""Replays recorded traces of the published codes, if GOLDEN_DIR names a folder with them (`make test-golden`)."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.heads.ffc import FFC, FFCSettings
from ffc_ds.heads.margins import make_margin

FOLDER = os.environ.get("GOLDEN_DIR")
if FOLDER is not None and not sorted(Path(FOLDER).glob("golden_*.npz")):
    raise FileNotFoundError(f"GOLDEN_DIR={FOLDER} holds no golden_*.npz")


def traces(pattern):
    if FOLDER is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason="GOLDEN_DIR is not set"))]
    return [pytest.param(path, id=path.stem) for path in sorted(Path(FOLDER).glob(pattern))]


def close(actual, expected, what, tolerance=1e-4):
    """Relative to the largest number of the array."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    bound = tolerance * max(np.abs(expected).max(), 1e-6)
    worst = np.abs(actual - expected).max()
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def replay_head(trace):
    meta = {key.removeprefix("meta_"): trace[key].item() for key in trace if key.startswith("meta_")}
    settings = FFCSettings(
        capacity=meta["queue_size"],
        dim=meta["feat_dim"],
        group_size=2,
        margin=meta["loss_type"].lower(),
        margin_strength=meta["margin"],
        scale=meta["scale"],
        hide_unfilled=False,
        own_rows_only=False,
        arc_guard=False,
    )
    assert settings.hard_negatives == meta["hard_neg"]
    assert getattr(make_margin(settings.margin), "mask", meta["mask_svfc"]) == meta["mask_svfc"]
    head = FFC(settings, torch.device("cpu"))
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

    taken = head.index.take_in(gallery_identities)
    head.storage.write(taken, features)
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


@pytest.mark.parametrize("path", traces("golden_ffc_*.npz")[:1])
def test_one_changed_number_is_noticed(path):
    trace = dict(np.load(path))
    free = {"meta_num_ids", "meta_mask_svfc"}  # an upper bound, and a setting of another loss
    for name in trace.keys() - free - {"meta_loss_type"}:
        changed = dict(trace) | {name: trace[name].copy()}
        cell = tuple(length // 2 for length in trace[name].shape)
        changed[name][cell] += 1 if trace[name].dtype.kind == "i" else 0.01 * np.abs(trace[name]).max()
        try:
            replay(changed)
        except (AssertionError, IndexError, RuntimeError):
            continue
        pytest.fail(f"a changed {name} went unnoticed")


@pytest.mark.parametrize("path", traces("golden_pfc_*.npz"))
def test_partial_fc_follows_the_released_code(path):
    pytest.skip("there is no Partial FC head yet")
