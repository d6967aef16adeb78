"""The backbone's part against a real net, and against what DeepSpeed really keeps."""

import json
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.models import build_backbone
from ffc_ds.planning.backbone import backbone_memory, count_backbone
from ffc_ds.planning.live_bytes import LiveBytes
from ffc_ds.planning.settings import PlanSettings
from tests.ranks import run_ranks

SOME, ALL = 3_000_000, 50_000_000  # of the gradients of an iresnet18 fit in a bucket


def test_live_bytes_counts_storages_once_and_only_new_ones():
    old = torch.ones(1000)
    with LiveBytes() as memory:
        view = old[10:]
        new = view + 1
        other = new.view(10, -1)[1:]
        assert memory.now == 990 * 4
        del new
        assert memory.now == 990 * 4
        del other
    assert (memory.now, memory.peak) == (0, 990 * 4)


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "vit"])
def test_count_is_that_of_a_real_net(name):
    settings = PlanSettings(1e5, 1e6, 1, backbone=name, image_size=32, batch_size=20, zero=0, dtype="fp32")
    counted, net = count_backbone(settings), build_backbone(name, 32)
    with LiveBytes() as memory:
        embeddings = net(torch.randn(20, 3, 32, 32)).embeddings
        kept = memory.now
        embeddings.backward(torch.ones_like(embeddings))
    gradients = sum(p.grad.nbytes for p in net.parameters())
    assert counted.parameters == sum(p.numel() for p in net.parameters())
    assert counted.kept[0] + 20 * counted.kept[1] == kept
    assert counted.activations(20, gallery=False) + gradients == pytest.approx(memory.peak, rel=0.01)
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(20, 3, 32, 32))
    assert 20 * counted.flops == counter.get_total_flops()


def test_unknown_backbone():
    with pytest.raises(UserError, match="resnet50.*iresnet50"):
        count_backbone(PlanSettings(1e5, 1e6, 1, backbone="resnet50"))


def peak_of_engine(folder, case):
    """Bytes of this rank's tensors at the peak of the forward and backward pass of a second step."""
    from ffc_ds.training.engine import Engine

    stage, dtype, gallery, bucket = case
    path = folder / f"{stage}-{dtype}-{bucket}-{rank()}.json"
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"stage": stage, "reduce_bucket_size": bucket}
    half = {} if dtype == "fp32" else {dtype: {"enabled": True}}
    path.write_text(json.dumps(dict.fromkeys(names, "auto") | half | {"zero_optimization": zero}))
    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(rank()))
    config = Config(deepspeed=str(path))
    config.data.batch_size = 8 * world_size()
    with LiveBytes() as memory:
        engine = Engine(config, build_backbone("iresnet18", 32), 0.99 if gallery else None)
        for _ in range(2):
            memory.peak = memory.now
            images = torch.randn(8, 3, 32, 32).to(engine.dtype)
            features = engine.features(images).float()
            if gallery:
                engine.gallery.features(images)
            engine.backward(features.square().mean())
            peak = memory.peak
            engine.step(0.1)
    return peak


CASES = [(0, "fp32", False, SOME), (2, "bf16", True, SOME), (3, "bf16", False, SOME)]
CASES += [(1, "fp32", False, ALL), (2, "bf16", True, ALL)]


def peaks_of_engine(folder):
    return [peak_of_engine(folder, case) for case in CASES]


def test_deepspeed(tmp_path):
    peaks = run_ranks(2, peaks_of_engine, tmp_path)[0]
    for (stage, dtype, gallery, bucket), peak in zip(CASES, peaks, strict=True):
        settings = PlanSettings(
            1e5, 1e6, 2, backbone="iresnet18", image_size=32, batch_size=8, zero=stage, dtype=dtype, bucket_size=bucket
        )
        parts = backbone_memory(settings, count_backbone(settings), gallery)
        assert peak == pytest.approx(sum(parts.values()), rel=0.1), (stage, dtype, bucket)
