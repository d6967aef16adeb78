"""Replays recorded traces of the released margins, if MARGINS_DIR names a folder with them (`make test-golden`).

Files of float64 check the functions of the margins alone, those of float32 the whole head, as it trains.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.errors import UserError
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.heads.margins import Rows, RunningState, make_margin
from ffc_ds.heads.margins.elastic import Elastic
from tests.test_golden import changes

FOLDER = os.environ.get("MARGINS_DIR")
FILES = [] if FOLDER is None else sorted(Path(FOLDER).glob("margin_*.npz"))
if FOLDER is not None and Path(FOLDER).is_dir() and not FILES:
    raise FileNotFoundError(f"MARGINS_DIR={FOLDER} holds no margin_*.npz")
MISSING = "MARGINS_DIR is not set" if FOLDER is None else f"there is no folder MARGINS_DIR={FOLDER}"
CPU = torch.device("cpu")
every_file = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem) for path in FILES]
    or [pytest.param(None, marks=pytest.mark.skip(reason=MISSING))],
)


class Trace:
    """A file, its settings, and the weights before each step, which may stand in the file of float32 alone."""

    def __init__(self, path):
        self.path = path
        with np.load(path, allow_pickle=False) as file:
            self.arrays = dict(file)
        self.main = None
        if "W" not in self.arrays and path.stem.endswith("_f64"):
            self.main = Trace(path.with_name(path.name.replace("_f64", ""))).arrays

    def settings(self, name):
        return HeadConfig(**settings_of(name, self.hp()))

    def hp(self):
        hp = {key.removeprefix("hp_"): value.item() for key, value in self.arrays.items() if key.startswith("hp_")}
        assert all(hp[key] == int(hp[key]) for key in ("K", "v", "arc", "plus", "easy_margin") if key in hp)
        return hp

    def weights(self, unit):
        """[T + 1, R, D], the last ones None where they are not recorded."""
        arrays = self.arrays if self.main is None else self.main
        if "W" in arrays:
            weights = list(arrays["W"])
        else:
            weights = [arrays["W0"]]
            for grad in arrays["grad_W"][:-1]:
                before = F.normalize(torch.from_numpy(weights[-1])).numpy() if unit else weights[-1]
                weights.append(before - np.float32(arrays["hp_lr"]) * grad)
        np.testing.assert_array_equal(weights[0], self.arrays["W0"])
        return [*weights, arrays.get("W_end")]


def settings_of(name, hp):
    """The settings that a file stands for."""
    kind, own = name.split("_")[1], {}
    if kind == "adaface":
        own = {"margin_strength": hp["m"], "adaface_h": hp["h"], "adaface_t_alpha": hp["t_alpha"]}
    elif kind == "magface":
        own = {"magface_bounds": [hp["l_a"], hp["u_a"]], "magface_margins": [hp["l_margin"], hp["u_margin"]]}
        own |= {"magface_lambda_g": hp["lambda_g"], "magface_form": form_of_magface(name, hp)}
    elif kind == "spherefacer":
        own = {"margin_strength": hp["m"], "sphereface_lw": hp["lw"], "sphereface_version": int(hp["v"])}
        kind = "sphereface_r"
    elif kind == "elastic":
        own = {"margin_strength": hp["m"], "elastic_std": hp["std"]}
        kind = ("elastic_arc" if hp["arc"] else "elastic_cos") + ("_plus" if hp["plus"] else "")
    elif kind == "subcenter":
        own = {"margin_strength": float(np.deg2rad(hp["margin_deg"])), "sub_centers": int(hp["K"])}
        kind = "arc"
    else:
        own = {"margin_strength": hp["m"]}
    return {"name": "full_fc", "margin": kind, "scale": hp["s"]} | own


def form_of_magface(name, hp):
    if hp.get("cos", hp.get("cosine", 1 - hp.get("arc", "cos" not in name))):
        return "cosine"
    return "easy" if hp.get("easy_margin", 1) else "guarded"


def step_of(arrays, hp, t, dtype):
    """Embeddings, labels and random draws of a step."""
    n = arrays["n"][t]
    x, y = torch.from_numpy(arrays["x"][t, :n]).to(dtype), torch.from_numpy(arrays["y"][t, :n])
    if "row_drawn" not in arrays:
        return x, y, None
    drawn = torch.from_numpy(arrays["row_drawn"][t, :n]).double()
    draws = (drawn - hp["m"]) / hp["std"] if hp["std"] else torch.zeros_like(drawn)
    return x, y, draws.to(dtype)


def functions(trace, config):
    """What the functions of a margin make of each step, in float64, with gradients from their slopes."""
    margin, hp = make_margin(config), trace.hp()
    state = RunningState(margin, CPU)
    load_state(state, trace.arrays, margin)
    for t, weights in enumerate(trace.weights(margin.unit_rows)[:-1]):
        x, y, draws = step_of(trace.arrays, hp, t, torch.float64)
        sort_twins_as_recorded(margin, trace.arrays, t)
        x.requires_grad_()
        w = torch.from_numpy(weights).double()
        w = (F.normalize(w) if margin.unit_rows else w).requires_grad_()
        vectors = F.normalize(x) @ (w if margin.unit_rows else F.normalize(w)).T
        cosines = vectors.view(len(x), -1, config.sub_centers).amax(2)
        norms, own = x.norm(dim=1), (torch.arange(len(x)), y)
        rows = state.see(Rows(cosines[own].detach(), norms.detach(), draws))
        found = dense(margin, cosines, norms, own, rows)
        ce = F.cross_entropy(config.scale * found, y)
        added, slope = margin.regulariser(rows.norms) if margin.trains_norms else (torch.zeros(1), 0)
        loss = margin.loss_factor(config.scale) * ce + straight(added, slope, norms).mean()
        grad_x, grad_w = torch.autograd.grad(loss, [x, w])
        state.settle(applied=True)
        yield {
            **{"logits": config.scale * found, "loss_ce": ce, "loss": loss, "grad_x": grad_x, "grad_W": grad_w},
            **beside(margin, state, rows, added),
            "after": w - hp["lr"] * grad_w,
        }


def straight(value, slope, by):
    """`value` with the gradient `slope`."""
    return value + slope * (by - by.detach())


def dense(margin, cosines, norms, own, rows):
    found = cosines
    if margin.changes_negatives:
        value, slope = margin.negatives(cosines.detach().clone(), rows)
        found = straight(value, 1 if slope is None else slope, cosines)
    target = straight(*margin.target(cosines[own].detach(), rows), cosines[own])
    if margin.trains_norms:
        target = straight(target, margin.by_norm(rows.target, rows), norms)
    return found.index_put(own, target)


def beside(margin, state, rows, added):
    found = {f"state_{name}": value for name, value in zip(margin.state, state.settled, strict=True)}
    if rows.draws is not None:
        found["row_margin"] = margin.margins(rows.target, rows)
        found["row_drawn"] = margin.margin + margin.std * rows.draws
    if margin.trains_norms and margin.lambda_g:
        found["loss_reg"] = added.mean() / margin.lambda_g
    return found


def whole_head(trace, config):
    """What the head makes of each step, in float32, and its class weights after it."""
    hp, all_weights = trace.hp(), trace.weights(make_margin(config).unit_rows)
    _, rows, dim = np.shape(all_weights[:-1])
    optim = ClassOptimConfig(momentum=0.0, weight_decay=0.0)
    head = FullFC(config, optim, rows // config.sub_centers, dim, CPU)
    head.settings = replace(head.settings, workspace_bytes=1)
    load_state(head.state, trace.arrays, head.margin)
    for t, weights in enumerate(all_weights[:-1]):
        head.weights.view(-1, dim).copy_(torch.from_numpy(weights))
        if head.margin.unit_rows:
            head.weights.copy_(F.normalize(head.weights))
        x, y, draws = step_of(trace.arrays, hp, t, torch.float32)
        sort_twins_as_recorded(head.margin, trace.arrays, t)
        head._draws = lambda *shape, draws=draws: draws
        loss, _ = head.loss(x.requires_grad_()[None], y[None].numpy())
        (grad_x,) = torch.autograd.grad(loss, x)
        (micro,) = head.micro_batches
        grad_w = micro.class_gradient(0, slice(0, len(head.weights)), head.weights).clone()
        added = micro.margin.regulariser(micro.rows.norms)[0] if head.margin.trains_norms else None
        found = {"logits": logits_of(micro, head.weights, y), "loss_ce": micro.losses.mean(), "loss": loss}
        found |= {"grad_x": grad_x, "grad_W": grad_w.view(-1, dim)}
        target = micro.own_target
        head.step(applied=True, learning_rate=hp["lr"])
        found |= beside(head.margin, head.state, replace(micro.rows, target=target), added)
        yield found | {"after": head.weights.view(-1, dim).clone()}


def logits_of(micro, weights, y):
    cosines, _, _ = micro._cosines(0, slice(0, len(weights)), weights.view(-1, micro.dim))
    cosines = cosines.view(len(y), -1, micro.settings.sub_centers).amax(2)
    cosines[torch.arange(len(y)), y] = micro.margin.target(micro.own_target, micro.rows)[0]
    return micro.settings.scale * cosines


def load_state(state, arrays, margin):
    """A file begins where the margin does, or at hp_t0."""
    started = torch.tensor([arrays[f"state_{name}"][0] for name in margin.state], dtype=torch.float64)
    expected = [float(arrays["hp_t0"])] if "hp_t0" in arrays else list(margin.state.values())
    np.testing.assert_array_equal(started, expected)
    if margin.state:
        state.load(started)


def replay(trace):
    torch.set_num_threads(1)
    name, bits = trace.path.stem, 64 if trace.path.stem.endswith("_f64") else 32
    arrays, config = trace.arrays, trace.settings(name)
    assert arrays["run_bits"] == bits
    check_padding(arrays)
    weights = trace.weights(unit := make_margin(config).unit_rows)
    steps = list((functions if bits == 64 else whole_head)(trace, config))
    assert len(steps) == len(arrays["n"])
    for t, found in enumerate(steps):
        n = arrays["n"][t]
        check_edges(
            arrays["edge"][t, :n], arrays["x"][t, :n], arrays["y"][t, :n], weights[t], arrays["logits"].shape[2]
        )
        if margin_is_undefined(config, n):
            check_nan(arrays, t, found, weights[t], weights[t + 1])
            continue
        check_step(arrays, t, found, bits)
        if weights[t + 1] is not None:
            check_weights(arrays, t, weights[t], found["after"], weights[t + 1], unit)
    known = {"n", "x", "y", "edge", "W0", "W", "W_end", "run_bits"} | steps[0].keys()
    assert not {key for key in arrays if not key.startswith("hp_")} - known


def sort_twins_as_recorded(margin, arrays, t):
    """ElasticFace+ sorts rows by cosine: which of two rows that are alike comes first is a matter of the sort."""
    twins = [row for row in np.flatnonzero(arrays["edge"][t] == 5) if row < arrays["n"][t]]
    if not isinstance(margin, Elastic):
        return
    margin.__dict__.pop("margins", None)
    if not margin.plus or len(twins) != 2:
        return
    recorded = torch.from_numpy(arrays["row_margin"][t, : arrays["n"][t]])

    def margins(cosine, rows):
        found = type(margin).margins(margin, cosine, rows)
        places = [int((cosine.argsort(descending=True, stable=True) == row).nonzero()) for row in twins]
        swapped = found.clone()
        swapped[places] = found[places[::-1]]
        return min(found, swapped, key=lambda each: (each - recorded).abs().sum())

    object.__setattr__(margin, "margins", margins)


def margin_is_undefined(config, n):
    """AdaFace's deviation of one row, with which the released code goes on as NaN."""
    return config.margin == "adaface" and n == 1


def check_nan(arrays, t, found, before, after):
    """Nothing is learnt there any more, and everything is finite here."""
    assert after is None or np.array_equal(before, after)
    assert np.isnan(arrays["state_batch_std"][t + 1]) and np.isnan(arrays["logits"][t, :1]).all()
    assert np.isnan(arrays["loss"][t]) and np.isnan(arrays["loss_ce"][t])
    assert not arrays["grad_x"][t].any() and not arrays["grad_W"][t].any()
    np.testing.assert_allclose(found["state_batch_mean"], arrays["state_batch_mean"][t + 1], rtol=1e-5)
    assert all(torch.isfinite(found[key]).all() for key in ("logits", "loss", "grad_x", "grad_W", "state_batch_std"))


def check_padding(arrays):
    for key in ("x", "y", "edge", "logits", "grad_x", "row_drawn", "row_margin"):
        for t, n in enumerate(arrays["n"] if key in arrays else ()):
            empty = -1 if key in ("y", "edge") else 0
            assert 0 < n <= len(arrays[key][t]) and (arrays[key][t, n:] == empty).all(), f"{key} beyond step {t}"
    for t, n in enumerate(arrays["n"]):
        assert arrays["x"][t, :n].any(1).all()


def check_edges(edge, x, y, weights, classes):
    """What a file says of its rows is so; distances of unit vectors stand for angles."""
    x, w = (F.normalize(torch.from_numpy(each).double()) for each in (x, weights))
    near, far = (torch.cdist(side, w).view(len(x), classes, -1).amin(2).numpy() for side in (x, -x))
    same, rows = torch.cdist(x, x).numpy() < 1e-9, np.arange(len(x))
    bounds = {1: (2e-3, 4e-3), 2: (2e-3, 4e-3), 3: (2e-4, 4e-4), 4: (2e-4, 4e-4), 7: (0, 1e-5), 8: (0, 1e-5)}
    for row, kind in enumerate(edge):
        label, others = y[row], same[row] & (rows != row)
        if kind in bounds:
            low, high = bounds[kind]
            holds = low <= (near if kind in (1, 3, 7) else far)[row, label] <= high
        elif kind == 9:
            holds = near[row].min() < 0.8 < near[row, label]
        else:
            holds = kind == (0 if not others.any() else 5 if (y[others] == label).any() else 6)
            holds &= min(near[row, label], far[row, label]) > 5e-3
        assert holds, f"edge {kind} of row {row}"


def check_step(arrays, t, found, bits):
    n, edge = arrays["n"][t], arrays["edge"][t]
    tight, loose = (1e-5, 1e-5) if bits == 64 else (3e-5, 3e-2)
    steep = np.isin(edge[:n], (7, 8) if bits == 64 else (1, 2, 3, 4, 7, 8))
    for key, value in found.items():
        if key == "after" or key not in arrays:
            continue
        value, recorded = value.detach().double().numpy(), arrays[key]
        if key.startswith("state_"):
            close(value, recorded[t + 1], 1e-5, f"{key} after step {t}")
        elif key in ("logits", "row_drawn", "row_margin"):
            close(value[~steep], recorded[t, :n][~steep], tight, f"{key} at step {t}")
            close(value[steep], recorded[t, :n][steep], loose, f"{key} of steep rows at step {t}")
        elif key == "grad_x":
            close_to_largest(value[~steep], recorded[t, :n][~steep], f"{key} at step {t}", recorded[t])
        elif key == "grad_W":
            kept = rows_besides(arrays["y"][t, :n][steep], len(value), arrays["logits"].shape[2])
            close_to_largest(value[kept], recorded[t][kept], f"{key} at step {t}", recorded[t])
        else:
            close(value, recorded[t], loose if steep.any() else tight, f"{key} at step {t}")


def rows_besides(labels, rows, classes):
    return ~np.isin(np.arange(rows) // (rows // classes), labels)


def close(actual, expected, tolerance, what):
    worst = np.max(np.abs(actual - expected) / (1 + np.abs(expected)), initial=0)
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}"


def close_to_largest(actual, expected, what, everything):
    bound = 1e-5 * np.nanmax(np.abs(everything), initial=1e-6)
    worst = np.max(np.abs(actual - expected), initial=0)
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


def check_weights(arrays, t, before, after, expected, unit):
    """The weights before the next step are those that the recorded gradient leads to, and those of the head, where no
    row was so steep that float32 could not say."""
    n = arrays["n"][t]
    steep = np.isin(arrays["edge"][t, :n], (1, 2, 3, 4, 7, 8))
    kept = rows_besides(arrays["y"][t, :n][steep], len(expected), arrays["logits"].shape[2])
    before, after, next_ = (torch.as_tensor(each).detach().double() for each in (before, after, expected))
    before = F.normalize(before) if unit else before
    recorded = before - float(arrays["hp_lr"]) * torch.from_numpy(arrays["grad_W"][t]).double()
    if arrays["run_bits"] == 32:
        assert torch.equal(finite := torch.isfinite(recorded), torch.isfinite(next_))
        close(recorded[finite].numpy(), next_[finite].numpy(), 1e-5, f"weights by the recorded gradient of step {t}")
    if unit:
        after, next_ = F.normalize(after), F.normalize(next_)
    close(after[kept].numpy(), next_[kept].numpy(), 1e-4, f"weights after step {t}")


@every_file
def test_margins_follow_the_released_codes(path):
    replay(Trace(path))


@every_file
def test_one_changed_number_is_noticed(path):
    original = Trace(path)
    free = {"hp_m", "hp_std"} if "row_drawn" in original.arrays else set()  # any draws could be of theirs
    for name, changed in changes(original.arrays, free):
        trace = Trace(path)
        trace.arrays = changed
        try:
            replay(trace)
        except (AssertionError, IndexError, RuntimeError, UserError, ValueError):
            continue
        pytest.fail(f"a changed {name} went unnoticed")
