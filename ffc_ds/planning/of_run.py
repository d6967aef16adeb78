"""What the settings of a run say to a plan."""

from typing import Any

from ffc_ds.config.ds_config import read_ds_config
from ffc_ds.config.settings import Config
from ffc_ds.errors import UserError

ELSEWHERE = ("cpu", "nvme")  # devices of DeepSpeed's offload
OF_VIRTUAL_FC = ("auto", "id")  # loaders that have several images of each identity with it, which alone asks
REDUCE_BUCKET = 5e8  # DeepSpeed's own reduce_bucket_size


def settings_of_run(config: Config, gpus: int) -> dict[str, Any]:
    """The settings of a plan that a run on so many GPUs has. Raises UserError if they cannot share its batches."""
    model, head, class_optim = config.model, config.head, config.class_optim
    ds_config = read_ds_config(config.deepspeed)
    zero = ds_config.get("zero_optimization", {})
    half = (name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled"))
    offloaded = [name for name in ("optimizer", "param") if zero.get(f"offload_{name}", {}).get("device") in ELSEWHERE]
    if "param" in offloaded:
        raise UserError(f"{config.deepspeed} has offload_param, of which a plan knows nothing: leave it out to plan")
    share, rest = divmod(config.data.batch_size, config.train.accumulation * gpus)
    if rest or share % 2:
        raise UserError(
            f"data.batch_size {config.data.batch_size} cannot be shared by {gpus} GPUs in {config.train.accumulation} "
            "parts of an even number of images each: change it, or --gpus"
        )
    return {
        "head": head.name,
        "backbone": model.name,
        "overrides": model.overrides,
        "image_size": model.image_size,
        "embedding_size": model.embedding_size,
        "batch_size": share,
        "accumulation": config.train.accumulation,
        "zero": zero.get("stage", 0),
        "dtype": next(half, "fp32"),
        "bucket_size": zero.get("reduce_bucket_size", REDUCE_BUCKET),
        "offload": "optimizer" in offloaded,
        "optimizer": config.optim.name,
        "average": config.train.average,
        "head_dtype": head.dtype,
        "workspace_mb": head.workspace_mb,
        "class_optimizer": class_optim.name,
        "class_memory": class_optim.memory,
        "sample_rate": head.sample_rate,
        "group_identities": head.group_identities,
        "images_per_identity": config.data.images_per_identity if config.data.loader in OF_VIRTUAL_FC else 1,
        "sub_centers": head.sub_centers,
        "gallery_momentum": head.gallery_momentum,
        "pool": head.pool,
        "pool_size": head.pool_size,
        "group_size": head.group_size,
        "workers": config.data.workers,
    }
