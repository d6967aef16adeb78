"""What the loops beside this file have in common: a net, a head, and the batches that a sampler plans.

torchrun --nproc_per_node 2 examples/..._loop.py [STEPS [HEAD]]
"""

import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ffc_ds import heads
from ffc_ds.data.augment import to_input
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.loader import make_loader
from ffc_ds.data.opening import load_faces
from ffc_ds.data.sampler import Sampler
from ffc_ds.distributed import rank, world_size
from ffc_ds.models import build_backbone

DATA, BATCH_SIZE, IMAGE_SIZE, DIM = "generated:60:32", 24, 32, 16
NET = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MILD = {"margin_strength": 0.2, "scale": 16.0}  # for a run as short as this one
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
HEAD = sys.argv[2] if len(sys.argv) > 2 else "full_fc"


def join() -> torch.device:
    """Join the processes of torchrun. Returns the device to compute on."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    return torch.device("cuda", torch.cuda.current_device())


def make_parts(device: torch.device) -> tuple[nn.Module, heads.Head, Iterator[dict]]:
    """After joining: a net with the same weights on all ranks, a head, and batches."""
    faces = load_faces(DATA, "train", "image", "label")
    index = IdentityIndex.build(faces.labels)
    torch.manual_seed(0)
    net = build_backbone("vit", IMAGE_SIZE, DIM, **NET).to(device)
    head = heads.build(HEAD, index.identities, DIM, rows=BATCH_SIZE // 2, device=device, **MILD)
    return net, head, batches(faces, index, device)


def batches(faces, index: IdentityIndex, device: torch.device) -> Iterator[dict]:
    """For each step `images`, float [2, r, 3, S, S], this rank's rows of two views, and `identities`, int64 numpy
    [2, W r], of the rows of all ranks in rank order: a head wants to know those of the others, too."""
    sampler = Sampler(index, BATCH_SIZE, loader="instance")
    for batch in make_loader(faces, sampler, IMAGE_SIZE, rank(), world_size(), 1, 0, STEPS, workers=0):
        images = to_input(batch.images.to(device), torch.from_numpy(batch.flips).to(device))
        yield {"images": images.unflatten(0, (2, -1)), "identities": batch.labels}


def features_of(net: nn.Module, batch: dict) -> Tensor:
    """[2, r, dim] with gradient, both views in one forward."""
    return net(batch["images"].flatten(0, 1)).embeddings.unflatten(0, (2, -1))


def say(step: int, loss: Tensor) -> None:
    if rank() == 0:
        print(f"step {step}: loss {loss.item():.6f}", flush=True)
