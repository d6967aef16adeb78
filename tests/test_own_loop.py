"""docs/own_loop.md and examples/: heads and other parts in loops that are not the trainer's."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ffc_ds import heads
from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from tests.launched import ROOT, TINY, losses, train, train_ranks
from tests.ranks import run_ranks

PAGE = (ROOT / "docs" / "own_loop.md").read_text()
IDENTITIES, DIM, ROWS, STEPS = 60, 8, 12, 4
EVERY_HEAD = {
    "ffc": {"margin": "arc", "pool_size": 20},
    "ffc, lru": {"name": "ffc", "pool": "lru", "pool_size": 20},
    "full_fc": {"sub_centers": 2, "class_optim": {"momentum": 0.5}},
    "partial_fc": {"sample_rate": 0.3, "margin": "adaface"},
    "virtual_fc": {"group_identities": 2, "class_optim": {"name": "adamw"}},
    "metric": {},
}


def code(heading):
    """The python of a section of the page."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE))


def small_net():
    torch.manual_seed(0)
    net = nn.Linear(16, DIM)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return DistributedDataParallel(net), optimizer


def small_head(name):
    return heads.build(
        **{"name": name, "identities": IDENTITIES, "dim": DIM, "rows": ROWS, "scale": 16, **EVERY_HEAD[name]}
    )


def batch(step):
    """Inputs [2, r, 16] of this rank, identities [2, ROWS] of all; most of them several times."""
    rng = np.random.default_rng(step)
    identities = rng.integers(0, IDENTITIES, ROWS).repeat(2).reshape(2, ROWS)
    inputs = torch.from_numpy(rng.standard_normal((2, ROWS, 16))).float()
    return inputs.chunk(world_size(), dim=1)[rank()], identities


def steps(net, optimizer, head, numbers):
    """Losses, and the gradient of the first step before DDP takes the mean."""
    found, own = [], None
    for step in numbers:
        inputs, identities = batch(step)
        if step == 0:
            features = net.module(inputs).detach().requires_grad_()
            (of_features,) = torch.autograd.grad(head.loss(features, identities)[0], features)
            own = of_features.flatten(0, 1).T @ inputs.flatten(0, 1)
            head.step(False, 0.1)
        loss, _ = head.loss(net(inputs), identities)
        loss.backward()
        optimizer.step()
        head.step(True, 0.1)
        optimizer.zero_grad()
        found.append(loss.item())
    return found, own


def every_head(folder, begin, end):
    """`steps` begin .. end - 1 of each head, saved in `folder` as the page has it, or gone on with from there."""
    page, found = {}, {}
    exec(code("Saving, and going on with another number of ranks"), page)
    for name in EVERY_HEAD:
        net, optimizer = small_net()
        head, place = small_head(name), f"{folder}/{name}"
        if begin:
            page["load"](place, net, optimizer, head)
        found[name] = steps(net, optimizer, head, range(begin, end))
        if not begin:
            page["save"](place, net, optimizer, head)
    return found


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """Of all steps on one rank, and of the first half on two, the others on three."""
    folder = tmp_path_factory.mktemp("saved")
    worlds = ((1, "one", 0, STEPS), (2, "two", 0, 2), (3, "two", 2, STEPS))
    return [run_ranks(world, every_head, str(folder / name), *which) for world, name, *which in worlds]


@pytest.mark.parametrize("name", EVERY_HEAD)
def test_every_head_works_in_a_plain_loop_and_goes_on_with_other_ranks(loops, name):
    (whole,), begun, gone_on = ([of_rank[name][0] for of_rank in ranks] for ranks in loops)
    assert begun[0] == begun[1] and gone_on[0] == gone_on[1] == gone_on[2]
    np.testing.assert_allclose(begun[0] + gone_on[0], whole, rtol=1e-4)
    assert len(set(whole)) == STEPS


@pytest.mark.parametrize("name", EVERY_HEAD)
def test_the_mean_of_the_gradients_over_the_ranks_is_that_of_the_global_loss(loops, name):
    (whole,), parts, _ = ([of_rank[name][1] for of_rank in ranks] for ranks in loops)
    torch.testing.assert_close(sum(parts) / len(parts), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EVERY_HEAD)
def test_autocast_around_a_head_changes_nothing(name):
    inputs, identities = batch(0)
    found = []
    for enabled in (False, True):
        head, features = small_head(name), inputs[..., :DIM].clone().requires_grad_()
        for _ in range(2):  # of which the second one sees the class state that the first one leaves
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss, _ = head.loss(features, identities)
            loss.backward()
            head.step(True, 0.1)
        found.append((loss.item(), features.grad))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def run_page():
    net = DistributedDataParallel(nn.Linear(16, 64))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, labels = torch.randn(2, 24, 16), torch.randint(0, 1000, (2, 24))
    page = {"device": torch.device("cpu"), "net": net, "optimizer": optimizer, "images": images, "labels": labels}
    asked = []
    page |= {"world_size": world_size(), "one_image_of": lambda part: asked.append(part) or torch.ones(len(part), 16)}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)), page)
    assert torch.cat(asked).tolist() == list(range(1000)) and max(map(len, asked)) <= 256
    return page["loss"].item(), page["softmax"].value.item(), page["head"].checksum()


@pytest.mark.parametrize("name", ["full_fc", "partial_fc", "virtual_fc"])
@pytest.mark.parametrize("rows", [(48, 16), (16, 48)])
def test_micro_batches_of_a_step_may_differ_in_size(name, rows):
    found = []
    for workspace_mb in (1, 64):  # many blocks of classes, and one
        settings = {"group_identities": 2} if name == "virtual_fc" else {}
        head = heads.build(name, 3000, DIM, 48, accumulation=2, workspace_mb=workspace_mb, **settings)
        rng = np.random.default_rng(0)
        for number in rows:
            probe = torch.from_numpy(rng.standard_normal((2, number, DIM))).float().requires_grad_()
            head.loss(probe, rng.integers(0, 3000, (2, number)))[0].backward()
        head.step(True, 0.1)
        found.append(head.weights)
    torch.testing.assert_close(*found)


def test_the_code_of_the_page_runs():
    one, other = run_ranks(2, run_page)
    assert one == other and np.isfinite(one).all()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"name": "fullfc"}, "head.name is fullfc; it should be one of 'ffc', 'full_fc'"),
        ({"name": "full_fc", "margn": "arc"}, "margn"),
        ({"name": "full_fc", "scale": -1}, "head.scale is -1.0; it must be above 0"),
        ({"name": "ffc", "preset": "f2c", "group_size": 3}, "head.group_size is 3, but head.preset f2c stands for 2"),
        ({"name": "ffc", "pool": "lru", "pool_size": 8}, "a global view of 12 images"),
        ({"name": "ffc", "pool": "lru", "pool_size": 8, "accumulation": 3}, "data.batch_size to at most 48"),
        ({"name": "ffc", "seed": 2**50}, "seed is 1125899906842624; it must be a whole number from 0"),
        ({"name": "ffc", "seed": -1}, "seed is -1"),
        ({"name": "full_fc", "weights": "runs/a"}, "head.weights is for the trainer"),
        ({"name": "full_fc", "init": "features"}, "head.init is for the trainer"),
        ({"name": "ffc", "gallery_momentum": 0.99}, "the third argument of head.loss"),
        ({"name": "ffc", "identities": 0}, "identities is 0; it must be a whole number above 0"),
        ({"name": "full_fc", "identities": -5}, "identities is -5"),
        ({"name": "metric", "dim": 0}, "dim is 0"),
        ({"name": "full_fc", "dim": -1}, "dim is -1"),
        ({"name": "ffc", "rows": 0}, "rows is 0"),
        ({"name": "ffc", "rows": None}, "rows is None"),
        ({"name": "virtual_fc", "in_batch": 0}, "in_batch is 0"),
        ({"name": "ffc", "images": [3, 1]}, "images must be 60 whole numbers"),
        ({"name": "ffc", "accumulation": 0}, "accumulation is 0"),
        ({"name": "ffc", "accumulation": 1.5}, "accumulation is 1.5"),
        ({"name": "ffc", "device": "cdua"}, "device is cdua, which cannot be used"),
    ],
)
def test_what_is_no_head_is_said(wrong, reason):
    with pytest.raises(UserError, match=reason):
        heads.build(**{"identities": IDENTITIES, "dim": DIM, "rows": ROWS} | wrong)


def test_what_the_trainer_reads_may_say_nothing():
    told = {"weights": None, "init": "random", "gallery_momentum": 0.0}
    assert heads.build("ffc", np.int64(IDENTITIES), DIM, ROWS, **told).classes == IDENTITIES
    assert heads.build("ffc", IDENTITIES, DIM, ROWS, preset="f2c", pool_size=20).capacity == 20


def test_numbers_may_be_those_of_numpy():
    counts = np.ones(IDENTITIES, np.uint32)
    head = heads.build("ffc", IDENTITIES, DIM, ROWS, images=counts, pool_size=np.int64(10), seed=np.uint32(3))
    assert head.pool == 10 and head._images.tolist() == counts.tolist()
    optim = {"momentum": np.float32(0.5)}
    assert heads.build("full_fc", IDENTITIES, DIM, ROWS, class_optim=optim).optimizer.config.momentum == 0.5


def test_more_identities_than_anchors():
    head = heads.build("virtual_fc", IDENTITIES, DIM, ROWS, in_batch=6, group_identities=10)
    with pytest.raises(UserError, match="shows 24 identities, and there are 6 anchors"):
        head.loss(torch.randn(2, ROWS, DIM), np.arange(2 * ROWS).reshape(2, ROWS))


PRODUCT = (
    *("--data.shift", "0", "--model.overrides"),
    "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    *("--head.name", "full_fc", "--head.margin_strength", "0.2", "--head.scale", "16", "--optim.schedule", "constant"),
    *("--deepspeed", "ds_configs/zero0.json", "--train.steps", str(STEPS)),
)


@pytest.fixture(scope="module")
def losses_of_trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = train(2, *TINY, *PRODUCT, "--output_dir", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return losses(folder)


@pytest.mark.parametrize("loop", ["ddp", "fsdp", "accelerate", "trainer"])
def test_other_loops_have_the_losses_of_the_trainer(losses_of_trainer, loop, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    first, other = train_ranks(2, str(STEPS), script=f"examples/{loop}_loop.py")
    assert first.code == other.code == 0, first.stderr[-3000:] + other.stderr[-3000:]
    found = [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", first.stdout, re.MULTILINE)]
    np.testing.assert_allclose(found, losses_of_trainer, rtol=1e-5)
    assert len(found) == STEPS
