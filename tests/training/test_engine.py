"""The engine on two ranks: a step that is not finite is refused everywhere, and gradients are those of one process."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from ffc_ds.config.settings import Config
from ffc_ds.distributed import all_reduce, rank, world_size
from ffc_ds.models import build_backbone
from tests.ranks import run_ranks

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
ROWS, CLIP = 12, 1e-3
BUFFER = re.compile("running_|num_batches")


def engine_for(name, accumulation=1, batch_norm=False, optimizer="sgd", groups=False):
    """groups: the first weights are frozen, the next ones learn at another rate than the rest."""
    from ffc_ds.training.engine import Engine

    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(rank()))
    config = Config(deepspeed=str(DS_CONFIGS / f"{name}.json" if isinstance(name, str) else name))
    config.data.batch_size, config.train.accumulation = ROWS * accumulation, accumulation
    config.optim.name = optimizer
    config.optim.lr, config.optim.weight_decay, config.optim.clip = 0.1, 0.0, CLIP
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    net = build_backbone("vit", 16, 8, batch_norm=batch_norm, **small)
    slow = []
    if groups:
        frozen, *slow = [name for name, _ in net.named_parameters()][:5]
        net.get_parameter(frozen).requires_grad_(False)
        config.optim.backbone_lr_factor = 0.5
    return Engine(config, net, gallery_momentum=0.9, from_weights=slow)


def images(seed):
    everyone = torch.randn(ROWS, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    part = ROWS // world_size()
    return everyone[rank() * part : (rank() + 1) * part]


def loss_of(engine, seed, poison=1.0):
    """A loss as heads make it: equal on all ranks, its gradient that of the whole times the world size."""
    inputs = (images(seed) * poison).to(engine.dtype)
    features = engine.features(inputs).float()
    engine.gallery.features(inputs)
    own = features.square().sum()
    return own * world_size() + (all_reduce(own.detach().clone()) - own.detach() * world_size())


def refused_then_applied(name, accumulation):
    engine = engine_for(name, accumulation, batch_norm=True)
    before = engine.weights()
    applied = []
    for step in range(2):
        for micro in range(accumulation):
            # Not finite on one rank and in one micro-batch only: all of the step must go, on all ranks.
            poisoned = step == 0 and micro == 0 and rank() == world_size() - 1
            engine.backward(1e-2 * loss_of(engine, micro, torch.nan if poisoned else 1.0))
            result = engine.step(0.1)
        applied.append(result)
        if step == 0:
            engine.average_buffers()
            untouched = engine.weights()
    after = engine.weights()
    unchanged = all(torch.equal(before[key], untouched[key]) for key in before)
    moved = any(not torch.equal(before[key], after[key]) for key in before)
    buffers = [*engine.module.buffers(), *engine.gallery.module.buffers()]
    finite = all(value.isfinite().all() for value in [*after.values(), *buffers])
    return applied, unchanged, moved, finite, engine.gradient_norm


def refused_by_each():
    return {name: refused_then_applied(name, accumulation=2) for name in ("zero0", "zero1", "zero2", "zero3", "bf16")}


def test_a_step_that_is_not_finite_is_refused_on_all_ranks():
    first, second = run_ranks(2, refused_by_each)
    for name, (applied, unchanged, moved, finite, norm) in first.items():
        assert applied == second[name][0] == [False, True], name
        assert unchanged and moved and finite and second[name][3], name
        assert norm == second[name][4] > 0, name


def three_steps(name):
    engine = engine_for(name)
    norms = []
    for step in range(3):
        engine.gallery.follow()
        engine.backward(loss_of(engine, seed=step) * 1e-2)
        assert engine.step(0.1)
        norms.append(engine.gradient_norm)
    return engine.weights(), norms


def three_steps_of_each(*names):
    return {name: three_steps(name) for name in names}


def test_gradients_are_those_of_one_process():
    alone, norms = run_ranks(1, three_steps_of_each, "zero0")[0]["zero0"]
    assert min(norms) > CLIP
    for name, (together, found) in run_ranks(2, three_steps_of_each, "zero0", "zero2", "zero3")[0].items():
        torch.testing.assert_close(torch.tensor(found), torch.tensor(norms), rtol=1e-4, atol=1e-6, msg=name)
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")


def by_both_ways(name, accumulation, groups):
    """What two steps make of the weights, gradients all at once, and one by one as DeepSpeed does; and the lengths of
    what was averaged at once."""
    from ffc_ds.training import gradients_at_once

    found, lengths, own_part = [], [], gradients_at_once._own_part

    def noted(*arguments):
        lengths.append(len(own := own_part(*arguments)))
        return own

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gradients_at_once, "_own_part", noted)
        for fits in (gradients_at_once._fit_together, lambda optimizer: False):
            patched.setattr(gradients_at_once, "_fit_together", fits)
            engine = engine_for(name, accumulation, batch_norm=True, groups=groups)
            for micro in range(2 * accumulation):
                engine.backward(loss_of(engine, seed=micro) * 1e-2)
                applied = engine.step(0.1)
            assert applied
            found.append((engine.weights(), engine.gradient_norm))
    return *found, lengths


def each_by_both_ways():
    cases = [(name, micro, False) for name in ("zero1", "zero2", "bf16") for micro in (1, 2)] + [("zero2", 1, True)]
    return {case: by_both_ways(*case) for case in cases}


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_gradients_at_once_give_what_deepspeed_makes_of_each(ranks):
    for case, ((together, norm), (one_by_one, expected), lengths) in run_ranks(ranks, each_by_both_ways)[0].items():
        name, micro, groups = case
        assert len(lengths) == (4 if groups else 2 if name == "zero1" else 2 * micro), "only where it was to be"
        if not groups:
            whole = sum(value.numel() for key, value in together.items() if not BUFFER.search(key))
            assert whole <= ranks * lengths[0] < whole + 8, f"{case}: a rank's share, and what makes shares even"
        assert norm == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-7, msg=str(case))


def its_own_ways(folder):
    return {key: "process_gradients" in vars(engine_for(folder / f"{key}.json")._engine.optimizer) for key in OWN_WAYS}


OWN_WAYS = {
    "none": {},
    "small": {"reduce_bucket_size": 1000},
    "overlap_comm": {"overlap_comm": True},
    "reduce_scatter": {"reduce_scatter": False},
    "use_multi_rank_bucket_allreduce": {"use_multi_rank_bucket_allreduce": False},
    "round_robin_gradients": {"round_robin_gradients": True},
}


def test_what_a_ds_config_asks_for_is_left_to_deepspeed(tmp_path):
    settings = json.loads((DS_CONFIGS / "zero2.json").read_text())
    for key, own in OWN_WAYS.items():
        zero = settings["zero_optimization"] | own
        (tmp_path / f"{key}.json").write_text(json.dumps(settings | {"zero_optimization": zero}))
    for found in run_ranks(2, its_own_ways, tmp_path):
        assert found == {key: key == "none" for key in OWN_WAYS}


def refused_at_the_smallest_scale():
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    engine = engine_for("zero2")
    scale = {"init_scale": 4.0, "scale_window": 1000, "min_scale": 1.0}
    # fp16's, which no CPU needs to be able to compute in
    engine._engine.optimizer.loss_scaler = DynamicLossScaler(**scale, delayed_shift=1, consecutive_hysteresis=False)
    engine._keep_refusing()
    looks = []
    for _ in range(4):
        engine.backward(loss_of(engine, 0) + torch.inf)  # with gradients that are finite
        assert not engine.step(0.1)
        looks.append(engine.looks_for_scale)
    return looks


def test_a_loss_that_is_not_finite_is_refused_also_where_the_loss_scale_cannot_fall_further():
    assert run_ranks(1, refused_at_the_smallest_scale) == [[True, False, False, False]]
