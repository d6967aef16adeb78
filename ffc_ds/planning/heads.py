"""What each head takes of a GPU in a step: memory, arithmetic, bytes to send; the formulas follow `ffc_ds.heads`."""

import math
from dataclasses import dataclass

import torch

from ffc_ds.data.sampler import most_identities
from ffc_ds.heads import STATES
from ffc_ds.heads.class_softmax import SUB_CENTER_BYTES
from ffc_ds.heads.hard_negatives import hard_negatives_of
from ffc_ds.heads.softmax import block_width, cell_bytes
from ffc_ds.planning.settings import PlanSettings

CUDA = torch.device("cuda")
BFLOAT16_UPDATE = {"sgd": 8, "adamw": 12}  # bytes a number of bf16 rows: fp32 copies of weights and state
ID_SHARE = 2 / 3  # data.id_share: rows of identities that the pool has just taken in


@dataclass(frozen=True)
class HeadCost:
    """Bytes on each GPU (`state`, `optimizer`, `workspace`, `features`), `flops` and bytes `sent` of a step, bytes of
    `host` memory for each GPU, and why the head would refuse these settings, if it would."""

    state: float = 0.0
    optimizer: float = 0.0
    workspace: float = 0.0
    features: float = 0.0
    flops: float = 0.0
    sent: float = 0.0
    host: float = 0.0
    gallery: bool = False
    refusal: str | None = None


def head_cost(settings: PlanSettings, device: torch.device = CUDA) -> HeadCost:
    """The cost of `settings.head`, which is one of them here, with the blocks that it has on such a device."""
    return {"ffc": _ffc, "metric": _metric}.get(settings.head, _class_weights)(settings, device)


def _class_weights(settings, device):
    """full_fc, partial_fc and virtual_fc: see class_softmax.py and class_optimizer.py."""
    dim, rows, size = settings.embedding_size, settings.rows, getattr(torch, settings.head_dtype).itemsize
    classes = int(settings.identities)
    if settings.head == "virtual_fc":
        classes = -(-classes // settings.group_identities)
    own = -(-classes // settings.gpus)
    sampled = settings.head == "partial_fc"
    columns = math.ceil(settings.sample_rate * own) + settings.batch_size if sampled else own
    several = settings.sub_centers if settings.head != "virtual_fc" else 1
    found = SUB_CENTER_BYTES if several > 1 else 0
    column = rows * (several * cell_bytes(getattr(torch, settings.head_dtype)) + found)
    workspace, vectors = (settings.workspace_mb << 20) // settings.accumulation, several * dim  # numbers of a class
    width = block_width(column, vectors, workspace // 4, device)
    kept = size * rows * several * columns + width * column <= workspace
    width = min(width, columns)
    states, on_host, half = STATES[settings.class_optimizer], settings.class_memory == "host", size == 2
    # Logits are fp32; half precision multiplies the class rows by a copy of them, which is what is kept.
    logits = settings.accumulation * size * rows * several * columns if kept else 0
    logits += (4 * rows * several * width if half or not kept else 0) + found * rows * width
    # of a block of class rows, bytes a number: gradient and its product with the rows, then what passes in an update
    block = 8 + (size * (1 + states) if sampled else 0) + (size * states if on_host else 0)
    block += 4 if settings.accumulation > 1 else 0  # the sum over micro-batches
    updated = BFLOAT16_UPDATE[settings.class_optimizer] if half else 0
    passing = max(updated * vectors, 2 * rows * several if half else 0)
    drawn = 8 * (3 + settings.accumulation) * columns if sampled else 0  # row numbers, while the last ones are drawn
    shown = min(most_identities(rows, settings.images_per_identity), settings.identities)
    refused = settings.head == "virtual_fc" and classes < shown
    return HeadCost(
        state=size * own * vectors,
        optimizer=0 if on_host else size * states * own * vectors,
        workspace=logits + width * (block * vectors + passing) + drawn,
        # in fp32: features of all ranks, two factors and two gradients of theirs; three more are of this rank's rows
        features=(5 + 3 / settings.gpus) * 4 * rows * dim + _of_earlier(settings),
        flops=(6 if kept else 8) * rows * columns * vectors,
        sent=_gathered(settings, 4 * rows * dim) + _reduced(settings, 4 * rows * dim) + _reduced(settings, 12 * rows),
        host=size * states * own * vectors if on_host else 0,
        refusal=f"{classes:,} anchors for a batch of {shown:,} identities" if refused else None,
    )


def _of_earlier(settings, gallery=False):
    """What earlier micro-batches keep for the update: features, a factor and a gradient of all ranks and the centers
    that are here, fp32, and the gallery's features."""
    numbers = 3 + 1 / settings.gpus + gallery
    return (settings.accumulation - 1) * numbers * 4 * settings.rows * settings.embedding_size


def _ffc(settings, device):
    return (_drawn_pool if settings.pool == "drawn" else _lru_pool)(settings, device)


def _drawn_pool(settings, device):
    """One pass over the sample and the batch's own, as partial_fc, without a gradient of the centers: drawn_pool.py."""
    dim, rows, size = settings.embedding_size, settings.rows, getattr(torch, settings.head_dtype).itemsize
    own, gallery = -(-int(settings.identities) // settings.gpus), settings.gallery_momentum > 0
    columns = min(math.ceil(settings.slots / settings.gpus), own) + settings.batch_size
    column = rows * cell_bytes(getattr(torch, settings.head_dtype))
    width = block_width(column, dim, (settings.workspace_mb << 20) // settings.accumulation // 4, device)
    width = min(width, columns)
    passing = max(32 * columns, 8 * columns + 2 * rows * width * (size == 2))  # row numbers are drawn, or multiplied
    passing += 8 * (settings.accumulation - 1) * columns
    return HeadCost(
        state=size * own * dim,
        workspace=width * (4 * rows + size * dim) + passing,
        # as of class weights, and the gallery's features of all ranks and of this one
        features=(5 + 3 / settings.gpus + (1 + 1 / settings.gpus) * gallery) * 4 * rows * dim
        + _of_earlier(settings, gallery),
        flops=4 * rows * columns * dim,
        sent=(1 + gallery) * _gathered(settings, 4 * rows * dim)
        + _reduced(settings, 4 * rows * dim)
        + _reduced(settings, 12 * rows),
        gallery=gallery,
    )


def _lru_pool(settings, device):
    """Two passes over half the rows each: see lru_pool.py and pool_loss.py."""
    dim, size, slots = settings.embedding_size, getattr(torch, settings.head_dtype).itemsize, settings.slots
    rows, own, matrices = settings.rows // 2, -(-slots // settings.gpus), settings.group_size
    column = rows * cell_bytes(getattr(torch, settings.head_dtype))
    width = min(block_width(column, dim, settings.workspace_mb << 20, device), own)
    hardest = hard_negatives_of(slots)
    fresh = rows * (1 - ID_SHARE) * (1 - min(1, slots / settings.identities))
    vectors = _reduced(settings, 3 * 4 * matrices * rows) + _gathered(settings, 4 * matrices * fresh * hardest)
    # in fp32: centers and sums of the existing rows, while blocks pass with their copies and when they are joined
    existing, centers, in_half = 4 * (rows - fresh) * dim, matrices / settings.gpus, 2 * rows * width * (size == 2)
    passing = max(existing * (1 + centers) + in_half, existing * (3 + matrices + 2 * centers))
    return HeadCost(
        state=size * matrices * own * dim,
        workspace=4 * rows * width,
        # and what earlier micro-batches wrote over
        features=9 * 4 * rows * dim + passing + (settings.accumulation - 1) * size * rows * dim / settings.gpus,
        flops=2 * (4 * rows - 2 * fresh) * own * dim,  # fresh rows take no softmax
        sent=2 * (2 * _gathered(settings, 4 * rows * dim) + _reduced(settings, 4 * rows * dim) + vectors),
        host=index_bytes(slots),
        gallery=settings.gallery_momentum > 0,
        refusal=f"a pool of {slots:,} slots for a view of {rows:,} images" if slots < rows else None,
    )


def index_bytes(slots: int) -> int:
    """Host memory of `PoolIndex` of that many slots, the same on every rank."""
    return 30 * slots + 4 * 1024 + (4 << max(4, (4 * slots - 1).bit_length()))


def _metric(settings, device):
    """Multi-similarity: pytorch-metric-learning 2.9 makes 18 matrices of all pairs of a batch."""
    dim, rows = settings.embedding_size, settings.rows
    return HeadCost(
        workspace=18 * 4 * rows**2,
        features=6 * 4 * rows * dim,
        flops=6 * rows**2 * dim,
        sent=_gathered(settings, 4 * rows * dim) + _reduced(settings, 4 * rows * dim),
    )


def _gathered(settings, total):
    """Bytes that each rank sends to gather `total` bytes around a ring."""
    return total * (1 - 1 / settings.gpus)


def _reduced(settings, total):
    """Bytes that each rank sends to all-reduce `total` bytes around a ring."""
    return 2 * total * (1 - 1 / settings.gpus)
