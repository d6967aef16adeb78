"""The systems, one file each, behind the contract of `base.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig, head_config, slots_of_pool
from ffc_ds.distributed import host_share, shard_bounds, together, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.base import Head
from ffc_ds.host_memory import free_memory

OF_TRAINER = {  # settings of a head that the trainer reads, and what there is in their place
    "weights": "head.take_rows",
    "init": "head.prefill",
    "gallery_momentum": "the third argument of head.loss",
}
MOST_SEEDS = 2**32  # as of a run
STATES = {"sgd": 1, "adamw": 2}  # tensors of the shape of the class weights that an optimizer keeps


@dataclass(frozen=True)
class MicroBatches:
    """What a head is going to see: `rows` of each view, of all ranks, with at most so many `identities` in both, and
    `accumulation` of them in a step."""

    rows: int
    identities: int
    accumulation: int = 1


def build(
    name: str,
    identities: int,
    dim: int,
    rows: int,
    *,
    in_batch: int | None = None,
    images: np.ndarray | None = None,
    accumulation: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    class_optim: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Head:
    """A head for a loop of one's own: see `base.Head` for what to do with it. All ranks call it alike.

    identities: how many there are, numbered from 0; dim: of a feature; rows: of each view of a micro-batch, all ranks
    together; in_batch: identities in a micro-batch at most, by default one a row of both views; images: whole numbers
    [identities], how many each has, by default one; accumulation: micro-batches of a step; device: of features and
    class state; class_optim, settings: fields of `config.settings.ClassOptimConfig` and `HeadConfig`, by name.

    Raises UserError on all ranks for a setting that is none, out of bounds, or only for the trainer, for numbers that
    are no counts, for a device that is not there, and as `build_head` does.
    """
    counts = {"identities": identities, "dim": dim, "rows": rows, "accumulation": accumulation}
    counts |= {} if in_batch is None else {"in_batch": in_batch}

    images = None if images is None else np.asarray(images)

    def check() -> tuple[HeadConfig, ClassOptimConfig, torch.device]:
        for what, count in counts.items():
            if not isinstance(count, Integral) or count < 1:
                raise UserError(f"{what} is {count!r}; it must be a whole number above 0.")
        if not isinstance(seed, Integral) or not 0 <= seed < MOST_SEEDS:
            raise UserError(f"seed is {seed!r}; it must be a whole number from 0 to 2^32 - 1.")
        if images is not None and (images.shape != (identities,) or images.dtype.kind not in "iu" or images.min() < 1):
            raise UserError(f"images must be {identities} whole numbers above 0, one for each identity.")
        config, optim = head_config({"name": name} | _plain(settings), _plain(class_optim or {}))
        for key, instead in OF_TRAINER.items():
            if getattr(config, key) != getattr(HeadConfig, key) and key in settings:
                raise UserError(f"head.{key} is for the trainer and would do nothing here; there is {instead}.")
        return config, optim, _usable(device)

    config, optim, place = together(check)
    batches = MicroBatches(rows, in_batch or 2 * rows, accumulation)
    return build_head(config, optim, identities, dim, batches, place, int(seed), images)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With Python's own numbers in place of numpy's."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device is {device}, which cannot be used: {reason}") from None


def build_head(
    config: HeadConfig,
    optim: ClassOptimConfig,
    identities: int,
    dim: int,
    batches: MicroBatches,
    device: torch.device,
    seed: int,
    images: np.ndarray | None = None,
) -> Head:
    """The head that `config.name` asks for, for features of `dim` numbers, and `images` of each identity, int64
    [identities], by default one.

    Raises UserError on all ranks if the head cannot hold the identities of a batch, or the memory the class state.
    """
    if config.name == "metric":
        from ffc_ds.heads.metric import Metric

        head = together(lambda: Metric(config))
    elif config.name != "ffc":
        head = _class_weights(config, optim, identities, dim, batches, device, seed)
    elif config.pool == "drawn":
        head = _drawn_pool(config, identities, dim, batches, device, seed, images)
    else:
        head = _lru_pool(config, identities, dim, batches, device, seed)
    head.identities = identities
    return head


def _drawn_pool(config, identities, dim, batches, device, seed, images):
    from ffc_ds.heads.drawn_pool import DrawnPool

    what, remedy = f"the centers of {identities} identities", "--head.pool lru"
    together(lambda: _refuse_what_does_not_fit(_of_a_rank(identities) * dim, config, what, remedy, device))
    return DrawnPool(config, identities, dim, device, seed, batches.accumulation, images)


def _lru_pool(config, identities, dim, batches, device, seed):
    from ffc_ds.heads.lru_pool import LRUPool

    capacity, rows = slots_of_pool(config.pool_size, identities), batches.rows

    def check():
        if capacity < rows:
            raise UserError(
                f"the pool of {capacity} slots (head.pool_size {config.pool_size:g} of {identities} identities) is "
                f"smaller than a global view of {rows} images, which could push itself out. Set head.pool_size to at "
                f"least {rows} or lower data.batch_size to at most {2 * capacity * batches.accumulation}."
            )
        what, remedy = f"the features of {capacity} slots", "a smaller pool (head.pool_size)"
        _refuse_what_does_not_fit(config.group_size * _of_a_rank(capacity) * dim, config, what, remedy, device)

    together(check)
    return LRUPool(config, capacity, dim, device, round(config.prefill * identities), seed)


def _class_weights(config, optim, identities, dim, batches, device, seed):
    from ffc_ds.heads.full_fc import FullFC
    from ffc_ds.heads.partial_fc import PartialFC
    from ffc_ds.heads.virtual_fc import VirtualFC

    grouped = config.name == "virtual_fc"
    classes = -(-identities // config.group_identities) if grouped else identities

    def check():
        if grouped and classes < (needed := min(batches.identities, identities)):
            raise UserError(
                f"{identities} identities in groups of {config.group_identities} have {classes} anchors, and a batch "
                f"could need {needed}: lower head.group_identities or data.batch_size, or use data.loader id with more "
                "data.images_per_identity."
            )
        weights = config.sub_centers * _of_a_rank(classes) * dim
        state = STATES[optim.name] * weights
        of_optimizer = "the state of their optimizer"
        if optim.memory == "host" and device.type == "cuda":
            host, pinned = torch.device("cpu"), STATES[optim.name] << (weights - 1).bit_length()  # torch rounds up
            _refuse_what_does_not_fit(pinned, config, f"{of_optimizer}, in host memory,", "--head.name ffc", host)
            state = 0
        remedy = "class_optim.memory host" if state and device.type == "cuda" else "--head.name ffc"
        what = f"the weights of {classes} classes" + (f" and {of_optimizer}" if state else "")
        _refuse_what_does_not_fit(weights + state, config, what, remedy, device)

    together(check)
    head = {"full_fc": FullFC, "partial_fc": PartialFC, "virtual_fc": VirtualFC}[config.name]
    return head(config, optim, classes, dim, device, seed, batches.accumulation)


def _of_a_rank(classes: int) -> int:
    """The most that a rank has of them."""
    return shard_bounds(classes, 0, world_size())[1]


def _refuse_what_does_not_fit(numbers: int, config: HeadConfig, what: str, remedy: str, device: torch.device) -> None:
    """Raise UserError when so many `numbers` of class state on each rank are more than the memory there is."""
    needed = numbers * getattr(torch, config.dtype).itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = free_memory() / (host_share() * world_size())
    if needed > free:
        remedy = f"head.dtype bfloat16, {remedy}" if config.dtype == "float32" else remedy
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB on each of {world_size()} ranks, and {free / 2**30:.1f} GiB are "
            f"free: use more ranks, {remedy}, or a shorter embedding (model.embedding_size)."
        )
