"""A plan: memory, traffic and speed of a run, and what to change if it does not fit."""

from dataclasses import dataclass, replace

import torch

from ffc_ds.heads import STATES
from ffc_ds.planning.backbone import Backbone, backbone_memory, backbone_sent, offloaded
from ffc_ds.planning.heads import CUDA, head_cost
from ffc_ds.planning.settings import PlanSettings

OVERHEAD = 1 << 30  # CUDA context, libraries and NCCL: 0.5 to 1.5 GiB on most systems, which torch cannot count
MOST_GPUS = 1 << 17
SAVED = "checkpoint, while it is written"
MAPPED = "identity index, mapped from disk"  # the system can drop it


@dataclass(frozen=True)
class Plan:
    """Of one head. `memory`: bytes on each GPU by part; `sent`: bytes by each GPU in a step; `host`: bytes on each
    host, all its processes together; `flops` of each GPU in a step; `refusal`: why train.py would not start."""

    settings: PlanSettings
    memory: dict[str, float]
    sent: dict[str, float]
    host: dict[str, float]
    flops: float
    refusal: str | None

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.refusal is None and self.total <= self.settings.gpu_memory * 2**30

    def images_per_second(self, rate: float) -> float:
        """Of all GPUs, with matrix products at `rate` FLOP/s and nothing else that takes time but sending."""
        bandwidth = self.settings.bandwidth
        sending = sum(self.sent.values()) / (1e9 * bandwidth) if bandwidth else 0
        return self.settings.rows / (self.flops / rate + sending)


def make_plan(settings: PlanSettings, backbone: Backbone, device: torch.device = CUDA) -> Plan:
    """The plan of `settings.head`, which is one of them here."""
    cost = head_cost(settings, device)
    parts = {
        "class state": cost.state,
        "class optimizer": cost.optimizer,
        "logits workspace": cost.workspace,
        "gathered features": cost.features,
    }
    overhead = {"CUDA and NCCL": OVERHEAD if device.type == "cuda" else 0}
    return Plan(
        settings,
        backbone_memory(settings, backbone, cost.gallery) | parts | overhead,
        {"head": cost.sent, "backbone": backbone_sent(settings, backbone, cost.gallery)},
        _host_memory(settings, cost, backbone),
        settings.batch_size * backbone.flops * (4 if cost.gallery else 3) + cost.flops,
        cost.refusal,
    )


def _host_memory(settings, cost, backbone):
    ranks = min(settings.gpus_per_node, settings.gpus)
    nets = 1 + STATES[settings.optimizer] + cost.gallery + bool(settings.average)  # of the size of the weights
    saved = cost.state + cost.optimizer + cost.host + 4 * nets * backbone.parameters / settings.gpus
    batch = 3 * settings.image_size**2 * settings.batch_size
    return {
        "pool index, class optimizer": ranks * cost.host,
        "backbone optimizer": ranks * offloaded(settings, backbone),
        SAVED: ranks * saved,
        MAPPED: 8 * (settings.images + 2 * settings.identities + 1),
        "loader": ranks * (2 * settings.workers + 1) * batch,
    }


def remedies(settings: PlanSettings, backbone: Backbone) -> list[str]:
    """Single changes that make a plan fit which does not, each as far as it has to go."""

    def fits(**changes) -> bool:
        return make_plan(replace(settings, **changes), backbone).fits

    found = []
    if settings.head == "ffc" and settings.pool == "lru":
        view = settings.rows // 2
        slots = _last(lambda n: fits(pool_size=n), view, max(settings.slots, view))
        if slots:
            found.append(f"a pool of at {'most' if slots > view else 'least'} {slots:,} slots (head.pool_size {slots})")
    half, on_host = {"head_dtype": "bfloat16"}, {"class_memory": "host"}
    changes = {"head.dtype bfloat16": half, "class_optim.memory host": on_host}
    if not any(fits(**change) for change in changes.values()):
        changes["head.dtype bfloat16 and class_optim.memory host"] = half | on_host
    changes |= {
        "ZeRO stage 2": {"zero": max(2, settings.zero)},
        "--head.name ffc": {"head": "ffc"},
        "--head.name ffc --head.pool lru": {"head": "ffc", "pool": "lru"},
    }
    found += [text for text, change in changes.items() if fits(**change)]
    if settings.head == "virtual_fc":
        group = _last(lambda n: fits(group_identities=n), 1, settings.group_identities)
        if group:
            found.append(f"at most {group} identities to an anchor (head.group_identities {group})")
    half_batch = _last(lambda n: fits(batch_size=2 * n), 1, settings.batch_size // 2)
    if half_batch:
        found.append(f"at most {2 * half_batch} images per GPU")
    gpus = _first(lambda n: fits(gpus=n), settings.gpus, MOST_GPUS)
    if gpus:
        found.append(f"at least {gpus:,} GPUs")
    return found


def _last(holds, low: int, high: int) -> int | None:
    """The last number of low .. high for which `holds`, which holds up to some number."""
    if not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _first(holds, low: int, high: int) -> int | None:
    """The first number that `holds`, which holds from some number on, up to a number beyond which it may not again."""
    above = low
    while not holds(above):
        low, above = above + 1, 2 * above
        if above > high:
            return None
    while low < above:
        middle = (low + above) // 2
        low, above = (low, middle) if holds(middle) else (middle + 1, above)
    return low
