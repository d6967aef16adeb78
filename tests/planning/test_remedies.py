"""What a plan adds up to, and that what it recommends helps, and no more than it has to."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from ffc_ds.config.settings import parse_config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.sampler import Sampler
from ffc_ds.errors import UserError
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.planning.backbone import Backbone
from ffc_ds.planning.of_run import settings_of_run
from ffc_ds.planning.plan import make_plan, remedies
from ffc_ds.planning.settings import PlanSettings

NET = Backbone(65_000_000, 24e9, (0.0, 56e6), (0.0, 55e6), (0.0, 5e6))
LARGE = PlanSettings(100e6, 1e9, 8, gpu_memory=40, head="ffc", pool="lru", pool_size=0.9)


def advised(settings, pattern):
    (number,) = [match[1] for text in remedies(settings, NET) if (match := re.search(pattern, text))]
    return int(number.replace(",", ""))


def fits(settings, **changes):
    return make_plan(replace(settings, **changes), NET).fits


def test_largest_pool():
    slots = advised(LARGE, r"head.pool_size (\d+)")
    assert fits(LARGE, pool_size=slots) and not fits(LARGE, pool_size=slots + 1)


def test_a_pool_of_the_latest_for_centers_that_do_not_fit():
    settings = replace(LARGE, pool="drawn", pool_size=0.01, gpu_memory=20)
    assert not fits(settings) and fits(settings, pool="lru")
    assert "--head.name ffc --head.pool lru" in remedies(settings, NET)


def test_fewest_gpus():
    gpus = advised(LARGE, r"at least ([\d,]+) GPUs")
    assert gpus > 8 and fits(LARGE, gpus=gpus) and not fits(LARGE, gpus=gpus - 1)


def test_largest_batch():
    settings = replace(LARGE, head="metric", batch_size=1024, gpu_memory=16)
    images = advised(settings, r"at most (\d+) images per GPU")
    assert fits(settings, batch_size=images) and not fits(settings, batch_size=images + 2)


def test_half_the_precision_or_the_state_elsewhere_or_both():
    def changes(gpu_memory):
        return [
            text for text in remedies(replace(LARGE, head="full_fc", gpu_memory=gpu_memory), NET) if "optim" in text
        ]

    state = 100e6 / 8 * 512 * 4 / 2**30  # 23.8 GiB
    assert changes(2 * state) == ["class_optim.memory host"]
    assert changes(state) == ["head.dtype bfloat16 and class_optim.memory host"]


def test_a_pool_smaller_than_a_view_is_refused():
    settings = replace(LARGE, pool_size=100)
    plan = make_plan(settings, NET)
    assert not plan.fits and "100 slots" in plan.refusal
    assert advised(settings, r"at least ([\d,]+) slots") == settings.rows // 2


def test_anchors_fewer_than_a_batch_are_refused():
    settings = replace(LARGE, head="virtual_fc", identities=50_000)
    group = advised(settings, r"head.group_identities (\d+)")
    assert fits(settings, group_identities=group) and not fits(settings, group_identities=group + 1)


@pytest.mark.parametrize(("loader", "images_each"), [("auto", 2), ("id", 8), ("instance", 4), ("dual", 4)])
def test_anchors_are_refused_as_in_a_run(loader, images_each):
    """For batches of 128 images: so many identities as a sampler shows at most fit, one more does not."""
    options = {"data.loader": loader, "data.images_per_identity": images_each, "head.group_identities": 100}
    options |= {"head.name": "virtual_fc", "data.batch_size": 128, "deepspeed": "ds_configs/zero2.json"}
    config = parse_config([text for key, value in options.items() for text in (f"--{key}", str(value))])
    index = IdentityIndex(np.arange(20001), np.arange(20000), pa.array(map(str, range(20000))))
    sampler = Sampler(index, 128, config.loader, images_per_identity=images_each)
    batches = MicroBatches(64, sampler.most_identities(64))
    for anchors in (batches.identities, batches.identities - 1):
        plan = make_plan(PlanSettings(100 * anchors, 1e6, 1, **settings_of_run(config, 1)), NET)
        sizes = 100 * anchors, 4, batches, torch.device("cpu"), 0
        if anchors < batches.identities:
            assert f"{anchors} anchors for a batch of {batches.identities} identities" in plan.refusal
            with pytest.raises(UserError, match=f"have {anchors} anchors"):
                build_head(config.head, config.class_optim, *sizes)
        else:
            assert plan.refusal is None and build_head(config.head, config.class_optim, *sizes).classes == anchors


def test_speed():
    settings = replace(LARGE, head="full_fc", identities=1e6, bandwidth=100)
    plan = make_plan(settings, NET)
    products = settings.batch_size * 3 * 24e9 + 8 * settings.rows * 1e6 / 8 * 512
    seconds = products / 400e12 + sum(plan.sent.values()) / 100e9
    assert plan.images_per_second(400e12) == pytest.approx(settings.rows / seconds)
    assert plan.sent["backbone"] == pytest.approx(3 * 7 / 8 * 65e6 * 2)
    assert sum(make_plan(replace(settings, gpus=1), NET).sent.values()) == 0


def test_host():
    host = make_plan(LARGE, NET).host
    assert host["identity index, mapped from disk"] == 8 * (1e9 + 100e6 + 1 + 100e6)
    on_host = replace(LARGE, head="full_fc", class_memory="host")
    host = make_plan(on_host, NET).host
    assert host["pool index, class optimizer"] == 100e6 * 512 * 4
    assert host["checkpoint, while it is written"] == 2 * 100e6 * 512 * 4 + 2 * 65e6 * 4
