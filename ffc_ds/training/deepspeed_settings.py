"""What DeepSpeed is told: the ds_config of a run, filled in and checked."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS, DeepSpeedConfig, DeepSpeedConfigError

from ffc_ds.config.ds_config import fill_ds_config, read_ds_config
from ffc_ds.config.settings import Config
from ffc_ds.distributed import world_size
from ffc_ds.errors import UserError


def check_deepspeed_config(config: Config) -> None:
    """Raise UserError for what `Engine` would raise it for, as far as it shows in the ds_config. After
    `init_distributed`, which tells DeepSpeed how many ranks there are."""
    settings = read_deepspeed_config(config)
    with refusals(config.deepspeed):
        DeepSpeedConfig(settings)
    optimizer = settings.get("optimizer", {"type": "SGD"})["type"]
    if optimizer.lower() not in DEEPSPEED_OPTIMIZERS and not hasattr(torch.optim, optimizer):
        raise UserError(f"{config.deepspeed}: neither DeepSpeed nor torch.optim has an optimizer {optimizer}.")


def read_deepspeed_config(config: Config) -> dict:
    """The ds_config of a run with its "auto" values filled in. Raises UserError if it is missing or contradicts."""
    path = config.deepspeed
    settings = fill_ds_config(read_ds_config(path), path, config, world_size())
    if dtype_of(settings) == torch.float16 and get_accelerator().device_name() == "cpu":
        # Some CPUs can, at a fiftieth of the speed.
        raise UserError(f"{path} asks for fp16, which is for GPUs: on a CPU use bf16 (bf16.json) or fp32 (zero2.json).")
    if settings.get("checkpoint"):
        raise UserError(
            f"{path}: leave `checkpoint` out, ffc_ds has one way to write checkpoints, which it can verify."
        )
    if settings.get("managed_gradient_accumulation") is False:
        raise UserError(f"{path}: leave `managed_gradient_accumulation` out, train.accumulation is about that.")
    # Our optimizers are torch's, elementwise, and so as good on ZeRO's flat shards as on whole tensors. The timer would
    # make the host wait for the device twice a micro-batch.
    defaults = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return defaults | {"timers": {"throughput": {"enabled": False}}} | settings


@contextmanager
def refusals(path: str) -> Iterator[None]:
    """What DeepSpeed does not take is the user's to mend."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError, DeepSpeedConfigError) as error:
        raise UserError(f"DeepSpeed cannot work with {path}: {error}") from error


def dtype_of(settings: dict) -> torch.dtype:
    for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings.get(key, {}).get("enabled"):
            return dtype
    return torch.float32
