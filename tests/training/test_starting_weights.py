"""A net starts from weights: which are taken, which learn and how fast, under every ZeRO stage."""

import copy
import itertools
import os

import pytest
import torch
from transformers import Swinv2Config

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.models import build_backbone
from ffc_ds.training.starting_weights import freeze, take_weights
from tests.ranks import run_ranks
from tests.training.test_backbone_state import write
from tests.training.test_engine import DS_CONFIGS, ROWS, images, loss_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STAGES = ("zero0", "zero2", "zero3", "bf16")


def vit(image_size=16, seed=0, batch_norm=True):
    torch.manual_seed(seed)
    return build_backbone("vit", image_size, 8, batch_norm=batch_norm, **SMALL)


def test_weights_that_fit_are_taken_and_named():
    net, other = vit(), vit(seed=1)
    taken = take_weights(net, {name: value.double() for name, value in other.state_dict().items()}, "runs/a", False)
    assert taken == sorted(name for name, _ in net.named_parameters())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def spoilt(weights, what):
    weights = dict(weights)
    if what == "missing":
        del weights["fc.weight"]
    elif what == "left over":
        weights["head.weight"] = torch.ones(3)
    elif what == "shape":
        weights["features.bias"] = torch.ones(9)
    elif what == "infinite":
        weights["features.bias"] = torch.full((8,), torch.inf)
    elif what == "integers":
        weights["features.bias"] = torch.ones(8, dtype=torch.int8)
    elif what == "another":
        weights = build_backbone("mobilefacenet", 16, 8).state_dict()
        weights = {f"net.{name}": value for name, value in weights.items()}
    return weights


@pytest.mark.parametrize(
    ("what", "message", "can_start"),
    [
        ("missing", "(?s)runs/a does not fit: .*missing: fc.weight.*model.weights_missing initialise", True),
        ("left over", "left over: head.weight", True),
        ("shape", r"of another shape: features.bias \[9\] not \[8\]", True),
        ("infinite", "features.bias is not finite", False),
        ("integers", "features.bias is .* of another type, torch.int8", False),
        ("another", "(?s)0 of the .* missing: .* and .* more.* left over: net.bottle", False),
    ],
)
def test_what_does_not_fit_is_named_and_begins_anew_if_asked(capsys, what, message, can_start):
    net, weights = vit(), spoilt(vit(seed=1).state_dict(), what)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=message):
        take_weights(net, weights, "runs/a", False)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if not can_start:
        with pytest.raises(UserError):
            take_weights(net, weights, "runs/a", True)
        return
    taken = take_weights(net, weights, "runs/a", True)
    for name, value in net.state_dict().items():
        fits = name in weights and weights[name].shape == value.shape
        assert torch.equal(value, (weights if fits else before)[name]), name
    assert set(taken) == {
        name for name, p in net.named_parameters() if name in weights and p.shape == weights[name].shape
    }
    out = capsys.readouterr()
    assert f"of the {len(before) - 1} tensors" in out.out + out.err  # but the count of batches


def test_position_embeddings_are_interpolated_as_vit_does_it():
    net, other = vit(image_size=40), vit(seed=1)
    table = "vit.embeddings.position_embeddings"
    taken = take_weights(net, other.state_dict(), "runs/a", True)
    assert table in taken and "fc.weight" not in taken and "fc.bias" not in taken
    tokens = torch.zeros(1, 26, SMALL["hidden_size"])
    expected = other.vit.embeddings.interpolate_pos_encoding(tokens, 40, 40)
    torch.testing.assert_close(dict(net.named_parameters())[table], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=f"{table} .1, 5, 16. not .1, 26, 16."):
        take_weights(net, other.state_dict(), "runs/a", False)


def test_what_is_frozen():
    net = build_backbone("iresnet18", 16, 8, depth=[1, 1, 1, 1], width=1 / 16)
    freeze(net, ["conv1.*", "layer[12]*"])
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(("conv1.", "layer1.", "layer2.")), name
    frozen = {name for name, module in net.named_modules() if getattr(module, "frozen", False)}
    assert "layer2.0.bn3" in frozen and not frozen & {"bn1", "layer3.0.bn1", "features"}
    with pytest.raises(UserError, match=r"no parameter is called layer9.\*"):
        freeze(net, ["bn1.*", "layer9.*"])
    with pytest.raises(UserError, match="leaves nothing"):
        freeze(net, ["*"])


def engine_for(name, net, from_weights=(), factor=1.0, head_only_steps=0, accumulation=1):
    from ffc_ds.training.engine import Engine

    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(rank()))
    config = Config(deepspeed=str(DS_CONFIGS / f"{name}.json"))
    config.data.batch_size, config.train.accumulation = ROWS * accumulation, accumulation
    config.optim.lr, config.optim.backbone_lr_factor = 0.1, factor
    config.train.average, config.train.head_only_steps = 0.9, head_only_steps
    return Engine(config, net, 0.9, from_weights)


def do_step(engine, seed=0, poison=1.0):
    engine.gallery.follow()
    for micro in range(engine._engine.gradient_accumulation_steps()):
        engine.backward(1e-2 * loss_of(engine, seed + micro, poison if micro else 1.0))
        applied = engine.step(0.1)
    if applied:
        engine.average.follow(seed)
    return applied


def step_with_broken_gradient(engine):
    """The loss is finite; on the last rank, in the first micro-batch, the gradient of the features is not."""
    for micro in range(2):
        features = engine.features(images(0).to(engine.dtype))
        engine.gallery.features(images(0).to(engine.dtype))
        broken = micro == 0 and rank() == world_size() - 1
        features.register_hook(lambda grad, factor=torch.inf if broken else 1.0: grad * factor)
        engine.backward(features.float().square().sum())
        applied = engine.step(0.1)
    return applied


def state_of(engine):
    """Of all nets: weights of the probe and its followers, and this rank's buffers."""
    found = {f"0 {name}": value.float().clone() for name, value in engine._whole()}
    for place, follower in enumerate((engine.gallery, engine.average), 1):
        found |= {f"{place} {name}": value.clone() for name, value in follower.whole()}
    for place, net in enumerate((engine.module, engine.gallery.module, engine.average.module)):
        found |= {f"{place} {name}": buffer.clone() for name, buffer in net.named_buffers()}
    return found


def probe_of(engine):
    return {key.removeprefix("0 "): value for key, value in state_of(engine).items() if key.startswith("0 ")}


def paces(folder):
    """How far parameters go in the first step, with and without a factor on some of them, and where they then come to
    from what each stage has saved."""
    moved, gone_on, slow = {}, {}, {name for name, _ in vit(batch_norm=False).named_parameters() if "layer" in name}
    for name in STAGES[:-1]:  # half precision would round what moves
        for factor in (1.0, 0.25):
            engine = engine_for(name, vit(batch_norm=False), slow, factor)
            before = probe_of(engine)
            assert do_step(engine)
            after = probe_of(engine)
            moved[name, factor] = {key: after[key] - before[key] for key in after}
        write(engine.copy(), folder / name)
    for name in STAGES[:-1]:
        engine = engine_for(name, vit(batch_norm=False), slow, 0.25)
        for source in STAGES[:-1]:
            engine.load(folder / source)
            assert do_step(engine, 1)
            gone_on[name, source] = probe_of(engine)
    return slow, moved, gone_on


def test_what_came_from_weights_learns_at_its_own_rate_and_is_saved_for_any_stage(tmp_path):
    slow, moved, gone_on = run_ranks(2, paces, tmp_path)[0]
    for name in STAGES[:-1]:
        for key in dict(vit(batch_norm=False).named_parameters()):
            usual, changed = moved[name, 1.0][key], moved[name, 0.25][key]
            part = changed.norm() / usual.norm()
            assert part.item() == pytest.approx(0.25 if key in slow else 1.0, rel=0.01), (name, key)
    for places, weights in gone_on.items():
        for key, value in weights.items():
            expected = gone_on["zero0", "zero0"][key]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=f"{places} {key}")


def frozen_then_head_alone_then_all():
    found = {}
    for name in ("zero0", "zero3", "bf16"):
        torch.manual_seed(0)
        net = build_backbone("iresnet18", 16, 8, depth=[1, 1, 1, 1], width=1 / 16)
        freeze(net, ["layer1.*"])
        engine = engine_for(name, net, head_only_steps=2, accumulation=2)
        states = [state_of(engine)]
        engine.gallery_features(images(7).to(engine.dtype))
        applied = [do_step(engine, seed) for seed in range(2)]
        engine.average_buffers()
        applied.append(do_step(engine, poison=torch.nan if rank() else 1.0))
        applied.append(step_with_broken_gradient(engine))
        states.append(state_of(engine))
        engine.head_only = False
        applied += [do_step(engine, seed) for seed in range(2)]
        engine.average_buffers()
        engine.module.eval()  # as a verification does
        engine.module.train()
        applied.append(do_step(engine))
        states.append(state_of(engine))
        same = [{key for key in old if torch.equal(old[key], new[key])} for old, new in itertools.pairwise(states)]
        found[name] = applied, states[0].keys() - same[0], same[1]
    return found


def test_what_is_frozen_stays_bit_for_bit_and_so_do_all_nets_while_the_head_learns_alone():
    for found in run_ranks(3, frozen_then_head_alone_then_all):
        for name, (applied, moved_early, kept) in found.items():
            assert applied == [True, True, False, False, True, True, True], name
            assert not moved_early, name
            net = build_backbone("iresnet18", 16, 8, depth=[1, 1, 1, 1], width=1 / 16)
            layer = {key for key in net.state_dict() if key.startswith("layer1.")}
            assert {"layer1.0.bn1.running_mean", "layer1.0.conv1.weight"} <= layer
            assert {f"{place} {key}" for place in range(3) for key in layer} <= kept, name
            others = {key for key in kept if not key.split()[1].startswith("layer1.")}
            assert not [key for key in others if key.endswith(("conv1.weight", "running_mean", "fc.weight"))], name


def in_half_precision(folder):
    net = build_backbone(f"hub:{folder}", 32, 16)
    with pytest.raises(UserError, match="type swinv2 cannot compute in half precision") as caught:
        engine_for("bf16", net)
    return caught.value.shared


def test_an_encoder_that_half_precision_is_not_for_is_refused_on_all_ranks(tmp_path):
    Swinv2Config(image_size=32, embed_dim=16, depths=[1], num_heads=[2], window_size=4).save_pretrained(tmp_path)
    assert run_ranks(2, in_half_precision, tmp_path) == [True, True]
