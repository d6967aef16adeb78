"""The systems, one file each, behind the contract of `base.py`."""

import os

import psutil
import torch

from ffc_ds.config import HeadConfig
from ffc_ds.distributed import together, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.base import Head


def build_head(config: HeadConfig, identities: int, dim: int, rows: int, device: torch.device, seed: int) -> Head:
    """The head that `config.name` asks for, for features of `dim` numbers and views of `rows` rows over all ranks.

    Raises UserError on all ranks if the pool is too small for a view or the class state too large for the memory.
    """
    return {"ffc": _ffc, "full_fc": _full_fc}[config.name](config, identities, dim, rows, device, seed)


def _ffc(config, identities, dim, rows, device, seed):
    from ffc_ds.heads.ffc import FFC, FFCSettings

    capacity = round(config.pool_size * identities) if config.pool_size <= 1 else int(config.pool_size)

    def check():
        if capacity < rows:
            raise UserError(
                f"the pool of {capacity} slots (head.pool_size {config.pool_size:g} of {identities} identities) is "
                f"smaller than a global view of {rows} images, which could push itself out. Set head.pool_size to at "
                f"least {rows} or lower data.batch_size to at most {2 * capacity}."
            )
        _refuse_what_does_not_fit(4 * config.group_size * capacity * dim, f"the features of {capacity} slots", device)

    together(check)
    settings = FFCSettings(
        capacity=capacity,
        dim=dim,
        group_size=config.group_size,
        margin=config.margin,
        margin_strength=config.margin_strength,
        scale=32.0 if config.scale is None else config.scale,
        fresh_weight=config.fresh_weight,
        hide_unfilled=config.hide_unfilled,
        own_rows_only=config.own_rows_only,
        arc_guard=config.arc_guard,
        prefill_identities=round(config.prefill * identities),
        workspace_bytes=config.workspace_mb << 20,
        seed=seed,
    )
    return FFC(settings, device)


def _full_fc(config, identities, dim, rows, device, seed):
    from ffc_ds.heads.full_fc import FullFC

    what = f"class weights, velocity and gradient of {identities} identities"
    together(lambda: _refuse_what_does_not_fit(3 * 4 * identities * dim, what, device))
    return FullFC(config, identities, dim, device, seed)


def _refuse_what_does_not_fit(total_bytes: int, what: str, device: torch.device) -> None:
    """Raise UserError when this rank's part of the class state is more than the memory there is."""
    needed = total_bytes // world_size()
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_SIZE", world_size()))
    if needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB on each of {world_size()} ranks, and {free / 2**30:.1f} GiB are "
            "free: use more ranks, a smaller pool (head.pool_size) or a shorter embedding (model.embedding_size)."
        )
