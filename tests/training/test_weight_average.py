"""The average of the weights against a slow one, under every ZeRO stage, and in a run that is interrupted."""

import copy
import os

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank, world_size
from ffc_ds.models import build_backbone
from ffc_ds.training.weight_average import WeightAverage
from tests.launched import ROOT, class_state, metrics, train_tiny
from tests.ranks import run_ranks

DECAY, STEPS = 0.6, 4
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def slow_average(states, decay=DECAY):
    """Of state dicts, the first one as the run begins, the others after each step."""
    average = {name: value.double() for name, value in states[0].items()}
    for step, state in enumerate(states[1:]):
        d = min(decay, (1 + step) / (10 + step))
        for name, value in state.items():
            now = value.double()
            average[name] = d * average[name] + (1 - d) * now if value.is_floating_point() else now
    return average


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_it_is_that_of_a_slow_reference(dtype, decay):
    torch.manual_seed(0)
    probe = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    probe[0].to(dtype)
    net = copy.deepcopy(probe)
    average = WeightAverage(net, net, probe, decay)
    states = [copy.deepcopy(probe.state_dict())]
    for step in range(40):
        probe[1](torch.randn(5, 6) + step)
        with torch.no_grad():
            for parameter in probe.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        average.follow(step)
        states.append(copy.deepcopy(probe.state_dict()))
    average.refresh()
    expected = slow_average(states, decay)
    for name, value in average.whole():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    for name, value in net.state_dict().items():
        near = 1e-2 if value.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(value.double(), expected[name], rtol=near, atol=1e-6, msg=name)
    assert net[1].num_batches_tracked == 40 and not net.training


def followed(name):
    from ffc_ds.training.engine import Engine

    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(rank()))
    config = Config(deepspeed=str(ROOT / "ds_configs" / f"{name}.json"))
    config.data.batch_size, config.train.average, config.optim.lr = 8, DECAY, 0.5
    torch.manual_seed(0)
    net = build_backbone("vit", 16, 8, batch_norm=True, **SMALL)
    engine = Engine(config, net, gallery_momentum=0.9)
    assert [follower.name for follower in engine.followers] == ["gallery", "averaged"]

    def probe():
        return {key: value.detach().clone() for key, value in engine._whole()}

    states, generator = [probe()], torch.Generator().manual_seed(rank())
    for step in range(STEPS):
        engine.gallery.follow()
        engine.backward(engine.features(torch.randn(4, 3, 16, 16, generator=generator).to(engine.dtype)).square().sum())
        assert engine.step(0.5)
        engine.average.follow(step)
        states.append(probe())
    engine.average_buffers()
    weights, images = engine.weights(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        found = engine.trained()(images.to(engine.dtype)).embeddings.float()
    assert all(torch.equal(value, states[-1][key]) for key, value in probe().items())  # which trains on as it was
    return states, weights, found


def followed_by_each(*names):
    return {name: followed(name) for name in names}


def test_every_zero_stage_averages_verifies_and_hands_on_the_same():
    first, second = run_ranks(2, followed_by_each, "zero0", "zero2", "zero3", "bf16")
    for name, (states, weights, found) in first.items():
        assert not second[name][1]
        expected = slow_average(states)
        assert any(not torch.equal(states[-1][key], states[0][key]) for key in expected), name
        for key, value in expected.items():
            assert weights[key].dtype == torch.float32
            torch.testing.assert_close(weights[key].double(), value, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
        net = build_backbone("vit", 16, 8, batch_norm=True, **SMALL).eval()
        net.load_state_dict(weights)
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            wanted = net(images).embeddings
        near = {"rtol": 0.1, "atol": 0.1} if name == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, wanted, **near, msg=name)
        torch.testing.assert_close(second[name][2], found)


def test_a_run_hands_its_average_on_and_an_interrupted_one_the_same(tmp_path):
    settings = ("--train.average", "0.9", "--train.steps", "4", "--train.checkpoint_every", "2", "--optim.lr", "0.5")
    settings += (
        "--deepspeed",
        "ds_configs/zero3.json",
        "--head.gallery_momentum",
        "0.9",
        "--data.crop",
        "0.2",
        "--data.erase",
        "0.5",
    )
    train_tiny(2, tmp_path / "whole", *settings)
    middle = tmp_path / "whole" / "checkpoints" / "step-2"
    train_tiny(2, tmp_path / "resumed", *settings, "--resume", str(middle))
    expected = [line for line in metrics(tmp_path / "whole") if line["step"] > 2]
    assert [line for line in metrics(tmp_path / "resumed") if line["step"] > 2] == expected
    kept = class_state(tmp_path / "whole" / "checkpoints" / "step-4")
    for folder in ("whole", "resumed"):
        model = AutoModel.from_pretrained(tmp_path / folder / "model")
        for name, parameter in model.named_parameters():
            value = parameter.detach().flatten().numpy()
            np.testing.assert_array_equal(value, kept[f"averaged.average.{name}"], err_msg=name)
            assert not np.array_equal(value, kept[f"gallery.average.{name}"]), name
