"""The planned memory against that of a process which does what was planned, without a launcher, on a CPU."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ffc_ds.planning.backbone import count_backbone
from ffc_ds.planning.plan import make_plan
from ffc_ds.planning.settings import PlanSettings

ROOT = Path(__file__).resolve().parents[2]
SMALL = PlanSettings(2e5, 1e6, 1, backbone="mobilefacenet", image_size=64, batch_size=16, zero=0, dtype="fp32")
TWO_STEPS = r"""
import copy, re, sys
from pathlib import Path
import numpy as np, psutil, torch
from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.models import build_backbone

name, identities, slots, rows = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)


def train(identities, slots, rows):
    config = HeadConfig(name=name, pool_size=slots)
    batches = MicroBatches(rows, 2 * rows)
    head = build_head(config, ClassOptimConfig(), identities, 512, batches, torch.device("cpu"), 0)
    net = build_backbone("mobilefacenet", 64)
    gallery = copy.deepcopy(net) if head.wants_gallery else None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for step in range(2):
        images = torch.rand(2 * rows, 3, 64, 64)
        features = net(images).embeddings.unflatten(0, (2, -1))
        with torch.no_grad():
            following = gallery(images).embeddings.unflatten(0, (2, -1)) if gallery else None
        labels = np.random.default_rng(step).integers(0, identities, (2, rows))
        head.loss(features, labels, following)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        head.step(True, 0.1)


train(20, 4, 2)  # brings in the code of the libraries
before = psutil.Process().memory_info().rss
train(identities, slots, rows)
# ru_maxrss would begin at what the parent had
print(1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) - before)
"""
APART = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # tensors go back to the system at once, as on a GPU they do to torch


@pytest.mark.parametrize(("head", "slots"), [("full_fc", 1), ("ffc", 50_000)])
def test_process(head, slots):
    settings = replace(SMALL, head=head, pool_size=slots)
    plan = make_plan(settings, count_backbone(settings), torch.device("cpu"))
    planned = plan.total + plan.host["pool index, class optimizer"]
    arguments = [head, int(settings.identities), slots, settings.rows // 2]
    done = subprocess.run(
        [sys.executable, "-c", TWO_STEPS, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | APART | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == pytest.approx(planned, rel=0.1)
