"""What the backbone takes: arithmetic, activations, and what DeepSpeed keeps for it."""

import json
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from ffc_ds.heads import STATES
from ffc_ds.models import build_backbone
from ffc_ds.models.hub_source import PREFIX, check_half_precision
from ffc_ds.planning.live_bytes import LiveBytes
from ffc_ds.planning.settings import BYTES, PlanSettings

PREFETCH = 5e7  # zero_optimization.stage3_prefetch_bucket_size, numbers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """A net of `parameters` weights that spends `flops` on the forward pass of an image.

    Activations in bytes for a batch of b images are constant + slope * b: `training` at the peak of forward and
    backward, beside weights and their gradients; `kept` after the forward pass; `following` at the peak of a forward
    pass without gradient.
    """

    parameters: int
    flops: float
    training: tuple[float, float]
    kept: tuple[float, float]
    following: tuple[float, float]

    def activations(self, batch_size: int, gallery: bool) -> float:
        """Bytes at the peak of a step; a gallery net runs while the probe net's activations wait for backward."""
        training, kept, following = (a + b * batch_size for a, b in (self.training, self.kept, self.following))
        return max(training, kept + following) if gallery else training


def count_backbone(settings: PlanSettings) -> Backbone:
    """Run the net on tensors that have a shape and a type but no memory. Raises UserError if it cannot be built."""
    overrides = json.dumps(settings.overrides, default=str)
    net = settings.backbone, settings.image_size, settings.embedding_size, overrides, DTYPES[settings.dtype]
    keeping = _count(*net, False, settings.batch_size)
    if settings.zero < 2 or _fit_together(settings, keeping.parameters):
        return keeping
    return _count(*net, True, settings.batch_size)


def _fit_together(settings: PlanSettings, parameters: int) -> bool:
    """As training/gradients_at_once.py decides it, for the project's ds_configs."""
    return settings.zero in (1, 2) and parameters <= settings.bucket_size and not settings.offload


@lru_cache
def _count(name, image_size, embedding_size, overrides, dtype, frees_gradients, batch_size):
    build = partial(build_backbone, name, image_size, embedding_size, **json.loads(overrides))
    real = build() if name.startswith(PREFIX) else None  # some encoders of the hub look at numbers while they are built
    if real is not None and dtype != torch.float32:
        check_half_precision(real)
    with FakeTensorMode(), no_init_weights():
        net = build() if real is None else _without_memory(real)
        for parameter in net.parameters():  # buffers stay fp32, as DeepSpeed leaves them
            parameter.data = parameter.data.to(dtype)
            if frees_gradients and parameter.requires_grad:  # it is moved into a bucket
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        once, twice = (_bytes(net, image_size, dtype, factor * batch_size) for factor in (1, 2))
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(batch_size, 3, image_size, image_size, dtype=dtype))
    lines = [(2 * a - b, (b - a) / batch_size) for a, b in zip(once, twice, strict=True)]
    return Backbone(sum(p.numel() for p in net.parameters()), counter.get_total_flops() / batch_size, *lines)


def _without_memory(net):
    """The net itself, with tensors that have a shape and a type only."""
    for module in net.modules():
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    needs = value.requires_grad
                    kept[name] = nn.Parameter(empty, needs) if kept is module._parameters else empty
    return net


def _bytes(net, image_size, dtype, batch_size):
    """Bytes at the peak of a training step, after its forward pass, and at the peak of a forward pass alone."""
    net.zero_grad(set_to_none=True)
    with LiveBytes() as training:
        images = torch.empty(batch_size, 3, image_size, image_size, dtype=dtype)
        embeddings = net(images).embeddings
        kept = training.now
        embeddings.backward(torch.empty_like(embeddings))
    gradients = sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
    with LiveBytes() as following, torch.no_grad():
        net(torch.empty_like(images))
    return training.peak - gradients, kept, following.peak


def _forget_gradient(parameter):
    parameter.grad = None


def backbone_memory(settings: PlanSettings, backbone: Backbone, gallery: bool) -> dict[str, float]:
    """Bytes on each GPU, by part, as DeepSpeed 0.19 lays them out."""
    number, size, states = backbone.parameters, BYTES[settings.dtype], 4 * STATES[settings.optimizer]
    ranks, stage = settings.gpus, settings.zero
    share = number / ranks if stage else number
    together = _fit_together(settings, number)
    gradients = size * number if stage < 2 or together else 0
    # With ZeRO a rank's part of the mean gradient is kept over micro-batches.
    kept = 0 if settings.offload else share
    averaged = size * (kept if together else settings.bucket_size + kept) if stage else 0
    # Stage 3 gathers weights to use them, a prefetched part twice for a moment, and keeps those of so small a net.
    gathered = size * (number + min(number, PREFETCH)) if stage == 3 and ranks > 1 else 0
    weights = gathered + (size * share if stage == 3 else size * number)
    master = 4 * share if stage else 0
    average = 4 if size == 2 else 0  # in fp32 a net that follows is the average itself
    follower = (size + average) * (share if stage == 3 else number)
    # What is reduced is copied once more, when backward has let go of the activations.
    reduced = min(number, settings.bucket_size) if stage else number
    copied = size * reduced if ranks > 1 or together else 0
    return {
        "backbone weights": weights,
        "backbone gradients": gradients + averaged,
        "backbone optimizer": 0 if settings.offload else master + states * share,
        "gallery net": follower if gallery else 0,
        "average of the weights": follower if settings.average else 0,
        "activations": max(backbone.activations(settings.batch_size, gallery), copied),
    }


def offloaded(settings: PlanSettings, backbone: Backbone) -> float:
    """Bytes in host memory for each GPU: weights, their gradient and the optimizer's state, in fp32."""
    kept = 4 * (2 + STATES[settings.optimizer]) * backbone.parameters / settings.gpus
    return kept if settings.offload else 0


def backbone_sent(settings: PlanSettings, backbone: Backbone, gallery: bool) -> float:
    """Bytes that each GPU sends in a step around a ring, for gradients and weights.

    Stages 1 and 2 all-reduce gradients (use_multi_rank_bucket_allreduce) and gather the new weights; stage 3 gathers
    weights before forward and before backward and scatters gradients.
    """
    passes = (3 if settings.zero else 2) + (gallery and settings.zero == 3)
    return passes * (1 - 1 / settings.gpus) * BYTES[settings.dtype] * backbone.parameters
