"""DeepSpeed's own config, a JSON file: read and held against the settings of the run, without DeepSpeed."""

import difflib
import json
from collections.abc import Iterator
from typing import Any

from ffc_ds.config.documents import read_json
from ffc_ds.config.paths import PROJECT
from ffc_ds.errors import UserError

# What DeepSpeed reads; of others it says nothing.
KEYS = """
activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type
compile compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
datastates_ckpt disable_allgather disable_python_gc dump_state eigenvalue elasticity expert_parallel
flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping
gradient_predivide_factor graph_harvesting hybrid_engine log_level managed_gradient_accumulation
memory_breakdown nebula optimizer pipeline prescale_gradients progressive_layer_drop quantize_training scheduler
seq_parallel_communication_data_type sequence_parallel_size sparse_attention sparse_gradients steps_per_print
tensor_parallel tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu
use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb weight_quantization
zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
"""
KINDS = {dict: "an object, {...}", str: "text", bool: "true or false", int: "a whole number", float: "a number"}
# What is read here or in the engine, by dotted key; of the rest DeepSpeed says itself what is wrong with it.
READ = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": float,
    "zero_optimization": dict,
    "zero_optimization.stage": int,
    "optimizer": dict,
    "optimizer.type": str,
    "optimizer.params": dict,
    "optimizer.params.lr": float,
    "bf16": dict,
    "bf16.enabled": bool,
    "fp16": dict,
    "fp16.enabled": bool,
    "scheduler": dict,
}
# Where DeepSpeed would not say which entry it stumbled over.
READ |= {"steps_per_print": int}
READ |= dict.fromkeys(("activation_checkpointing", "aio", "checkpoint", "comms_logger", "data_types"), dict)
READ |= dict.fromkeys(("flops_profiler", "timers"), dict)


def usual_ds_config() -> str:
    """What `deepspeed: auto` means here: bf16.json where a device multiplies bf16 faster than fp32, otherwise
    zero2.json."""
    import torch  # takes a second, and most runs name a file

    from ffc_ds.half_precision import multiplies_bf16

    fast = multiplies_bf16("cuda" if torch.cuda.is_available() else "cpu")
    return f"ds_configs/{'bf16' if fast else 'zero2'}.json"


def read_ds_config(path: str) -> dict[str, Any]:
    """What a ds_config says. Raises UserError if it is missing, is no JSON object, or holds values of a wrong kind."""
    ours = f"The files in {PROJECT / 'ds_configs'} are a start."
    try:
        settings = read_json(path)
    except UserError as error:
        raise UserError(f"deepspeed: {error} {ours}") from None
    if not isinstance(settings, dict):
        raise UserError(f"deepspeed: {path} is no JSON object, {{...}}. {ours}")
    known = KEYS.split()
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            instead = f"Did you mean {close[0]}?" if close else "Take it out."
            raise UserError(f"{path}: DeepSpeed has no {key}. {instead}")
    for key, value in _entries(settings):
        kind = READ.get(key)
        fits = kind is None or type(value) is kind or (kind is float and type(value) is int)
        if not fits and (value != "auto" or kind is dict):
            raise UserError(f"{path}: {key} is {json.dumps(value)}; it should be {KINDS[kind]}.")
    if settings.get("steps_per_print") == 0:
        raise UserError(f"{path}: steps_per_print is 0; it counts steps.")
    return settings


def fill_ds_config(settings: dict[str, Any], path: str, config, ranks: int) -> dict[str, Any]:
    """The settings with each "auto" replaced by what the run asks for. Raises UserError where they contradict it.

    path: what to call the ds_config. config: the run's `Config`. ranks: of the run.
    """
    accumulation, batch_size = config.train.accumulation, config.data.batch_size
    ours = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // (accumulation * ranks),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optim.clip,
    }
    settings = dict.fromkeys(ours, "auto") | settings
    for key, value in ours.items():
        if settings[key] == "auto":
            settings[key] = value
        elif settings[key] != value:
            raise UserError(f'{path}: {key} is {settings[key]}, but the run asks for {value}. Write "auto" there.')
    _fill_optimizer(settings, path, config)
    if left := [key for key, value in _entries(settings) if value == "auto"]:
        raise UserError(f'{path}: {", ".join(left)} is "auto", but there is nothing here to fill in. Give a value.')
    return settings


def _fill_optimizer(settings: dict[str, Any], path: str, config) -> None:
    if "scheduler" in settings:
        raise UserError(f"{path}: leave out the scheduler; the settings in optim say how the learning rate goes.")
    if "type" not in settings.get("optimizer", {"type": None}):
        raise UserError(f"{path}: optimizer has no type, such as AdamW. Give one, or leave optimizer out.")
    ours = {"lr": config.optim.lr, "weight_decay": config.optim.weight_decay, "momentum": config.optim.momentum}
    params = settings.get("optimizer", {}).get("params", {})
    params |= {key: ours[key] for key, value in params.items() if value == "auto" and key in ours}
    if params.get("lr", config.optim.lr) != config.optim.lr:
        raise UserError(
            f'{path}: the learning rate {params["lr"]} is not optim.lr {config.optim.lr}. Write "auto" there.'
        )


def _entries(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{key}.")
