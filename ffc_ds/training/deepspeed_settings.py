"""What DeepSpeed is told: the ds_config of a run, filled in and checked."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.runtime.zero.utils import ZeRORuntimeException

from ffc_ds.config.ds_config import fill_ds_config, read_ds_config
from ffc_ds.config.settings import Config
from ffc_ds.distributed import world_size
from ffc_ds.errors import UserError

OPTIMIZERS = ("SGD", "Adam", "AdamW")  # others keep more than tensors of the shape of a parameter and a count of steps
# What DeepSpeed raises, beside errors of its own, for a ds_config that it does not take.
ITS_ERRORS = (ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
ITS_ERRORS += (ImportError, ArithmeticError)


def check_deepspeed_config(config: Config) -> None:
    """Raise UserError for what `Engine` would raise it for, as far as it shows in the ds_config. After
    `init_distributed`, which tells DeepSpeed how many ranks there are."""
    settings = read_deepspeed_config(config)
    with refusals(config.deepspeed):
        DeepSpeedConfig(settings)
    optimizer = settings.get("optimizer", {"type": "SGD"})["type"]
    if optimizer not in OPTIMIZERS:
        raise UserError(
            f"{config.deepspeed}: the state of optimizer {optimizer} cannot be saved here. Choose "
            f"{', '.join(OPTIMIZERS)}, or leave `optimizer` out: optim.name is about that."
        )


def read_deepspeed_config(config: Config) -> dict:
    """The ds_config of a run with its "auto" values filled in. Raises UserError if it is missing or contradicts."""
    path = config.deepspeed
    settings = fill_ds_config(read_ds_config(path), path, config, world_size())
    if dtype_of(settings) == torch.float16 and get_accelerator().device_name() == "cpu":
        # Some CPUs can, at a fiftieth of the speed.
        raise UserError(f"{path} asks for fp16, which is for GPUs: on a CPU use bf16 (bf16.json) or fp32 (zero2.json).")
    if "bfloat16" in settings:
        raise UserError(f"{path}: call `bfloat16` by its present name, `bf16`.")
    if dtype_of(settings) != torch.float32 and not settings.get("zero_optimization", {}).get("stage"):
        # Without ZeRO DeepSpeed takes a step with gradients of zero at the start, which decays weights.
        raise UserError(f"{path}: bf16 and fp16 want zero_optimization.stage 1 or more, which is no slower than 0.")
    if settings.get("checkpoint"):
        raise UserError(
            f"{path}: leave `checkpoint` out, ffc_ds has one way to write checkpoints, which it can verify."
        )
    for other in ("torch_autocast", "amp"):
        if settings.get(other, {}).get("enabled"):
            raise UserError(
                f"{path}: leave `{other}` out. Its gradients are clipped while they are scaled, and its scale is in no "
                "checkpoint: `bf16` or `fp16` computes in half precision here."
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
    except (*ITS_ERRORS, DeepSpeedConfigError, ZeRORuntimeException) as error:
        raise UserError(f"DeepSpeed cannot work with {path}: {str(error) or repr(error)}") from error


def dtype_of(settings: dict) -> torch.dtype:
    for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings.get(key, {}).get("enabled"):
            return dtype
    return torch.float32
