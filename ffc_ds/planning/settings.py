"""What a plan is asked for, and how that is read from the command line."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Literal

from ffc_ds.config.command_line import make_parser, refusals, with_underscores
from ffc_ds.config.keys import known_keys
from ffc_ds.config.settings import Config, parse_config, slots_of_pool
from ffc_ds.errors import UserError
from ffc_ds.planning.of_run import settings_of_run

HEADS = ("ffc", "full_fc", "partial_fc", "virtual_fc", "metric")
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class PlanSettings:
    """A run and the GPUs for it. Settings that train.py has too mean the same as there."""

    identities: float
    """Number of identities, such as 100e6."""
    images: float
    """Number of images, such as 1e9."""
    gpus: int
    """GPUs, one rank each."""
    gpu_memory: float = 80.0
    """Memory of a GPU, GiB."""
    gpus_per_node: int = 8
    """GPUs that share a host."""
    head: Literal["all", "ffc", "full_fc", "partial_fc", "virtual_fc", "metric"] = "all"
    """head.name, or all of them side by side."""
    backbone: str = "iresnet50"
    """model.name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """model.overrides."""
    image_size: int = 112
    """model.image_size."""
    embedding_size: int = 512
    """model.embedding_size."""
    batch_size: int = 128
    """Images per GPU at once, of both views together: data.batch_size divided by the GPUs and train.accumulation."""
    accumulation: int = 1
    """train.accumulation."""
    zero: Literal[0, 1, 2, 3] = 2
    """ZeRO stage."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What the backbone computes in."""
    bucket_size: float = 5e7
    """zero_optimization.reduce_bucket_size of the ds_config, in numbers."""
    offload: bool = False
    """Whether zero_optimization.offload_optimizer keeps the state of the backbone's optimizer in host memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """optim.name."""
    average: float = 0.0
    """train.average: whether an average of the weights is kept."""
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    """head.dtype."""
    workspace_mb: int = 256
    """head.workspace_mb."""
    class_optimizer: Literal["sgd", "adamw"] = "sgd"
    """class_optim.name."""
    class_memory: Literal["device", "host"] = "device"
    """class_optim.memory."""
    sub_centers: int = 1
    """head.sub_centers."""
    sample_rate: float = 0.1
    """head.sample_rate."""
    group_identities: int = 100
    """head.group_identities."""
    images_per_identity: int = 2
    """data.images_per_identity, or 1 with another data.loader than id."""
    gallery_momentum: float = 0.0
    """head.gallery_momentum; above 0 there is a second net."""
    pool: Literal["drawn", "lru"] = "drawn"
    """head.pool."""
    pool_size: float = 0.1
    """head.pool_size: up to 1 a share of the identities, above it a number."""
    group_size: int = 3
    """head.group_size."""
    workers: int = 1
    """data.workers."""
    matrix_tflops: float | None = None
    """Rate of matrix products in dtype on one GPU, TFLOP/s; the images/s follow from it."""
    measure: bool = False
    """Measure that rate on this machine."""
    bandwidth: float | None = None
    """Rate at which a GPU sends to the others, GB/s; without it sending is taken to cost no time."""

    @property
    def rows(self) -> int:
        """Images of a micro-batch on all GPUs."""
        return self.batch_size * self.gpus

    @property
    def slots(self) -> int:
        """Slots of the pool."""
        return slots_of_pool(self.pool_size, self.identities)


def parse_settings(arguments: list[str]) -> PlanSettings:
    """Settings from `--name value`; names may be written with dashes. Raises UserError.

    `--config FILE`, `--section.key value` and `--deepspeed FILE` are those of train.py: with any of them, all that is
    not given here is as in that run.
    """
    parser = make_parser("Plan a run before there are GPUs for it.")
    parser.add_argument("--config", metavar="FILE", help="Plan this run; train.py's --section.key VALUE change it.")
    parser.add_class_arguments(PlanSettings, skip={"measure"})
    parser.add_argument("--measure", action="store_true", help="Measure that rate on this machine.")
    own, of_run = _apart(arguments)
    own = with_underscores(own)
    with refusals("The plan cannot be made"):
        settings = parser.parse_args(own).as_dict()
    del settings["config"]
    if of_run:
        given = {argument.partition("=")[0].removeprefix("--") for argument in own}
        _positive("gpus", settings["gpus"])
        run = settings_of_run(parse_config(of_run), settings["gpus"])
        settings |= {name: value for name, value in run.items() if name not in given}
    settings = PlanSettings(**settings)
    _check(settings)
    return settings


def _apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The plan's own arguments, and those of train.py."""
    theirs = {"config", *known_keys(Config)} - {entry.name for entry in fields(PlanSettings)}
    own, of_run = [], []
    part = own
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.partition("=")[0].removeprefix("--")
            part = of_run if name in theirs or "." in name else own
        part.append(argument)
    return own, of_run


def _positive(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise UserError(f"--{name} is {value}; it must be a number above 0.")


def _check(settings):
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if entry.name not in ("zero", "workers", "average", "gallery_momentum") and type(value) in (int, float):
            _positive(entry.name, value)
    if settings.zero == 0 and settings.dtype != "fp32":
        raise UserError(f"--dtype {settings.dtype} wants --zero 1 or more, as train.py does.")
    if settings.identities < 2:
        raise UserError(f"--identities is {settings.identities:g}; it must be at least 2.")
    for name in ("average", "gallery_momentum"):
        if not 0 <= getattr(settings, name) < 1:
            raise UserError(f"--{name} is {getattr(settings, name)}; it must be at least 0 and below 1.")
    if settings.workers < 0:
        raise UserError(f"--workers is {settings.workers}; it must not be below 0.")
    if settings.sample_rate > 1:
        raise UserError(f"--sample_rate is {settings.sample_rate}; it must be at most 1.")
    if settings.batch_size % 2:
        raise UserError(f"--batch_size is {settings.batch_size}; it must be even, half for each view.")
