"""The memory of the code published with Partial FC (arXiv 2010.05222), to compare with."""

import math

from ffc_ds.planning.backbone import Backbone
from ffc_ds.planning.settings import BYTES, PlanSettings


def released_partial_fc(settings: PlanSettings, backbone: Backbone) -> dict[str, float]:
    """Bytes on each GPU, by part, with SGD and torch's data parallel and, below fp32, autocast.

    The sampled rows, their momentum and their gradients are copies, and all logits exist at once. torch keeps the
    memory of each CUDA stream apart: on the one that samples, the old and the new copies and what normalises them come
    to 7 times the rows; on the other one, softmax and the derivatives of the margin come to 10 times the logits, and 3
    times those of the images whose class is here.
    """
    dim, own = settings.embedding_size, -(-int(settings.identities) // settings.gpus)
    sampled = math.ceil(settings.sample_rate * own)
    half_copies = BYTES[settings.dtype] % 4
    return {
        "backbone": (4 + 4 + 4 + 4 + half_copies) * backbone.parameters,  # weights, gradients, momentum, buckets
        "activations": backbone.activations(settings.batch_size, gallery=False),
        "class weights and momentum": 2 * 4 * own * dim,
        "sampled rows": 7 * 4 * sampled * dim,
        "logits": (10 + 3 / settings.gpus) * 4 * sampled * settings.rows,
    }
