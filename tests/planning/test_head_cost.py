"""What a head is said to take against the head itself: every tensor, matrix product and collective is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import world_size
from ffc_ds.heads import MicroBatches, build_head, softmax
from ffc_ds.planning.heads import head_cost, index_bytes
from ffc_ds.planning.live_bytes import LiveBytes
from ffc_ds.planning.settings import PlanSettings
from ffc_ds.pool.index import PoolIndex
from tests.ranks import run_ranks

CPU = torch.device("cpu")
BASE = PlanSettings(20_000, 1e5, 1, batch_size=512, embedding_size=128, workspace_mb=16, head="full_fc")
LRU = {"head": "ffc", "pool": "lru", "pool_size": 10_000, "gallery_momentum": 0.99}
CASES = {
    "full_fc": {},
    "full_fc, logits kept": {"workspace_mb": 64},
    "full_fc, bfloat16": {"head_dtype": "bfloat16"},
    "full_fc, adamw": {"class_optimizer": "adamw"},
    "full_fc, bfloat16, adamw": {"head_dtype": "bfloat16", "class_optimizer": "adamw"},
    "full_fc, sub-centers": {"sub_centers": 2},
    "full_fc, sub-centers, logits kept": {"sub_centers": 2, "identities": 10_000, "workspace_mb": 64},
    "partial_fc": {"head": "partial_fc", "identities": 200_000, "sample_rate": 0.5},
    "virtual_fc": {"head": "virtual_fc", "group_identities": 2, "identities": 40_000},
    "ffc": {"head": "ffc", "identities": 200_000, "pool_size": 0.5},
    "ffc, gallery": {"head": "ffc", "identities": 200_000, "pool_size": 0.5, "gallery_momentum": 0.99},
    "ffc, bfloat16": {"head": "ffc", "identities": 200_000, "pool_size": 0.5, "head_dtype": "bfloat16"},
    "ffc, lru": LRU,
    "full_fc, four micro-batches": {"accumulation": 4, "identities": 10_000, "workspace_mb": 8},
    "full_fc, logits kept, four micro-batches": {"accumulation": 4, "identities": 5_000, "workspace_mb": 256},
    "ffc, gallery, four micro-batches": {
        "head": "ffc",
        "identities": 1e5,
        "pool_size": 0.5,
        "gallery_momentum": 0.99,
        "accumulation": 4,
    },
    "ffc, lru, four micro-batches": LRU | {"accumulation": 4},
    "ffc, lru, one feature": LRU | {"group_size": 1},
    "ffc, lru, bfloat16": LRU | {"head_dtype": "bfloat16"},
    "ffc, lru, all pooled": LRU | {"pool_size": 20_000},
}


def addmm_flops(out, a, b, **_):
    return 2 * a[0] * a[1] * b[1]


def build(settings, device=CPU):
    config = HeadConfig(
        name=settings.head,
        dtype=settings.head_dtype,
        workspace_mb=settings.workspace_mb,
        sub_centers=settings.sub_centers,
        sample_rate=settings.sample_rate,
        group_identities=settings.group_identities,
        gallery_momentum=settings.gallery_momentum,
        pool=settings.pool,
        pool_size=settings.pool_size,
        group_size=settings.group_size,
        hide_unfilled=False,
    )
    optim = ClassOptimConfig(settings.class_optimizer)
    batches = MicroBatches(settings.rows // 2, settings.rows, settings.accumulation)
    return build_head(config, optim, int(settings.identities), settings.embedding_size, batches, device, 0)


def batch(settings, seed=0):
    """Features of both nets and labels, two thirds of which are the same in both views, as the dual loader draws."""
    rows, dim = settings.batch_size // 2, settings.embedding_size
    probe, gallery = (torch.randn(2, rows, dim) for _ in range(2))
    labels = np.random.default_rng(seed).integers(0, settings.identities, (2, settings.rows // 2))
    paired = round(labels.shape[1] * 2 / 3)
    labels[1, :paired] = labels[0, :paired]
    return probe.requires_grad_(), labels, gallery


def step(head, *micro_batches):
    for probe, labels, gallery in micro_batches:
        loss, _ = head.loss(probe, labels, gallery if head.wants_gallery and head.config.gallery_momentum else None)
        loss.backward()
        if len(micro_batches) > 1:
            probe.grad = None  # the backbone takes it up
    head.step(True, 0.1)


@pytest.mark.parametrize("case", CASES)
def test_memory_and_products(case, monkeypatch):
    """Of a device that multiplies bf16, as those that are planned for do."""
    monkeypatch.setattr(softmax, "multiplies_bf16", lambda device_type: True)
    settings = replace(BASE, **CASES[case])
    cost, count = head_cost(settings, CPU), settings.accumulation
    batches = [[batch(settings, count * seed + number) for number in range(count)] for seed in range(2)]
    with LiveBytes() as memory:
        head = build(settings)
        state = memory.peak = memory.now
        for seed in range(2):
            step(head, *batches[seed])
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as products:
        step(head, *batches[0])
    assert state == cost.state + cost.optimizer
    assert memory.peak - state == pytest.approx(cost.workspace + cost.features, rel=0.1)
    assert products.get_total_flops() == pytest.approx(count * cost.flops, rel=0.1)


@pytest.mark.parametrize("slots", [1, 5, 1000, 65_536, 65_537])
def test_index(slots):
    index = PoolIndex(slots, 3)
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert index_bytes(slots) == sum(array.nbytes for array in arrays) + index._table._table.nbytes


def sent_by_a_rank(cases):
    """Bytes that a rank sends in a step if collectives go around a ring."""
    from ffc_ds import distributed

    others, sent = 1 - 1 / world_size(), []
    reduce, gather = dist.all_reduce, distributed._gather_into

    def counted_reduce(tensor, **options):
        sent.append(2 * others * tensor.nbytes)
        return reduce(tensor, **options)

    def counted_gather(output, tensor):
        sent.append(others * output.nbytes)
        return gather(output, tensor)

    dist.all_reduce, distributed._gather_into = counted_reduce, counted_gather
    totals = []
    for case in cases:
        settings = replace(BASE, gpus=world_size(), **CASES[case])
        head = build(settings)
        step(head, batch(settings))
        sent.clear()
        step(head, batch(settings, 1))
        totals.append(sum(sent))
    return totals


def test_sent():
    cases = ["full_fc", "partial_fc", "ffc", "ffc, gallery", "ffc, lru", "ffc, lru, one feature"]
    planned = [head_cost(replace(BASE, gpus=2, **CASES[case]), CPU).sent for case in cases]
    for sent in run_ranks(2, sent_by_a_rank, cases):
        assert sent == pytest.approx(planned, rel=0.005)


def test_metric_memory():
    pytest.importorskip("pytorch_metric_learning")
    settings = replace(BASE, head="metric", identities=100)
    cost, head, inputs = head_cost(settings, CPU), build(settings), batch(settings)
    with LiveBytes() as memory:
        step(head, inputs)
    assert memory.peak == pytest.approx(cost.workspace + cost.features, rel=0.1)
