"""All settings of a run: one dataclass per concern, filled from a YAML file and then from the command line."""

import difflib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ffc_ds.errors import UserError


@dataclass
class DataConfig:
    """Where images come from and how they are drawn."""

    train: str = "generated:1000:64"
    """Hub name, folder of parquet files, image folder, or generated:IDENTITIES:PIXELS."""
    split: str = "train"
    """Split to train on."""
    image_column: str = "image"
    """Column with the images."""
    label_column: str = "label"
    """Column with the identity of each image, an integer."""
    loader: Literal["dual", "id", "instance"] = "dual"
    """What fills the batches: two images of each identity (id), single images (instance), or both (dual)."""
    batch_size: int = 192
    """Images of one optimizer step: over both views, all ranks and all accumulated micro-batches."""
    id_share: float = 2 / 3
    """Share of a dual batch that the id loader fills; the published one is 64 pairs to 64 images."""
    shift: int = 0
    """Images are moved by up to this many pixels in each direction; 0 leaves them where they are."""
    workers: int = 1
    """Processes per rank that read and decode images; 0 does it in the training process."""


@dataclass
class ModelConfig:
    """The backbone."""

    name: str = "iresnet50"
    """iresnet18, 34, 50, 100 or 200, mobilefacenet, vit."""
    image_size: int = 112
    """Side of the square input in pixels; images of another size are resized."""
    embedding_size: int = 512
    """Length of the embedding."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Further settings of the backbone's own config class, such as {width: 0.5} for an iresnet."""


@dataclass
class HeadConfig:
    """The loss over identities and the class state it keeps."""

    name: Literal["ffc", "full_fc"] = "ffc"
    """Which system: ffc (dynamic class pool) or full_fc (one weight vector an identity, sharded)."""
    margin: Literal["am", "arc", "sv"] = "am"
    """Margin on the target cosine: AM-Softmax / CosFace, ArcFace, or SV-AM-Softmax."""
    margin_strength: float | None = None
    """Strength of the margin; by default the published one (am 0.4, arc 0.5, sv 0.4)."""
    scale: float | None = None
    """Factor on the cosines before the softmax; by default 32 for ffc and 64 for full_fc."""
    workspace_mb: int = 64
    """Memory for logits on each rank: they are worked on in blocks of this size, however many classes there are."""
    pool_size: float = 0.1
    """ffc: slots of the pool; up to 1 a share of the identities, above it a number."""
    group_size: int = 3
    """ffc: features kept for each slot (K); the released code keeps 2."""
    gallery_momentum: float = 0.99
    """ffc: the gallery net follows the probe net by gallery <- m * gallery + (1 - m) * probe, once a step."""
    prefill: float = 0.1
    """ffc: share of the identities that the gallery net puts into the pool before training."""
    fresh_weight: float = 1.0
    """ffc: factor on the term that pushes identities outside the pool from their nearest centers."""
    hide_unfilled: bool = True
    """ffc: slots that hold nobody are no negatives. The released code counts them, with random features."""
    own_rows_only: bool = True
    """ffc: row k of a slot counts only if its present holder wrote it. The released code does not look."""
    arc_guard: bool = True
    """ffc: ArcFace keeps falling beyond theta = pi - margin. The released code lets it rise."""
    preset: Literal["none", "f2c"] = "none"
    """ffc: f2c is the released code: group_size 2, no prefill, hide_unfilled, own_rows_only and arc_guard off."""


@dataclass
class OptimConfig:
    """How the backbone learns. A ds_config with an optimizer of its own overrules name, momentum and weight_decay."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the backbone."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """sgd: momentum, in Nesterov's form."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    """Course of the learning rate after the warm-up."""
    milestones: list[float] = field(default_factory=lambda: [8 / 19, 14 / 19, 17 / 19])
    """steps: where in the run (0 to 1) the learning rate is divided by ten."""
    warmup: float = 0.0
    """Share of the run in which the learning rate rises from 0."""
    clip: float = 0.0
    """Largest gradient norm, 0 for no clipping."""


@dataclass
class TrainConfig:
    """How long to train and what to keep."""

    epochs: float = 19.0
    """Length of the run: this many times the number of training images."""
    steps: int | None = None
    """Length of the run in optimizer steps; overrules epochs."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    log_every: int = 10
    """Steps from one line in metrics.jsonl to the next."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""


@dataclass
class EvalConfig:
    """Pair verification during and after training."""

    bin: str | None = None
    """An InsightFace-style .bin file with pairs of images."""
    split: str = "test"
    """Without bin: split of the training dataset whose identities, unseen in training, make the pairs."""
    holdout: float = 0.1
    """Without bin and without such a split: share of the training identities held out for the pairs."""
    pairs: int = 3000
    """Number of pairs drawn when there is no bin."""
    every: int = 0
    """Steps from one verification to the next, 0 for only before and after training."""
    batch_size: int = 256
    """Images embedded at once on each rank."""


@dataclass
class TrackingConfig:
    """Weights & Biases; metrics.jsonl is written in any case."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is what WANDB_MODE says, else online if an API key is found, else offline; nothing asks for a key."""
    project: str = "ffc_ds"
    """Project in Weights & Biases."""
    name: str | None = None
    """Name of the run; by default that of the output folder."""


@dataclass
class Config:
    """A run."""

    output_dir: str = "runs/ffc"
    """Folder for everything the run writes."""
    deepspeed: str = "ds_configs/zero2.json"
    """DeepSpeed's config; its "auto" values are filled in from this file."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    resume: str | None = None
    """Go on from a checkpoint: latest (of output_dir), auto (latest, or anew if there is none), or a folder."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


F2C = {"group_size": 2, "prefill": 0.0, "hide_unfilled": False, "own_rows_only": False, "arc_guard": False}


def parse_config(arguments: list[str]) -> Config:
    """Settings from `--config FILE` and `--section.key value`, the later winning. Raises UserError (shared)."""
    try:
        return _parse(arguments)
    except UserError as error:
        error.shared = True
        raise


def _parse(arguments: list[str]) -> Config:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, description="Train identity embeddings.")
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(Config)
    for argument in arguments:
        _check_key(argument.split("=")[0])
    for path in _config_files(arguments):
        _check_file(path)
    try:
        parsed = parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise UserError(f"The settings cannot be used: {error}") from None
    config = Config(**{entry.name: parsed[entry.name] for entry in fields(Config)})
    _apply_preset(config.head)
    _check_values(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write every setting, so that `--config` of the file repeats the run."""
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def known_keys(section=Config, prefix: str = "") -> list[str]:
    """Every setting as it is written on the command line, without the dashes."""
    keys = []
    for entry in fields(section):
        keys.append(prefix + entry.name)
        if is_dataclass(entry.type):
            keys += known_keys(entry.type, f"{prefix}{entry.name}.")
    return keys


def _config_files(arguments: list[str]) -> list[str]:
    followed = [after for before, after in zip(arguments, arguments[1:], strict=False) if before == "--config"]
    return followed + [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]


def _check_key(argument: str) -> None:
    if argument.startswith("--") and argument not in ("--config", "--local_rank", "--help"):
        _complain_unless_known(argument[2:], "on the command line")


def _check_file(path: str) -> None:
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; it should look like\n  data:\n    batch_size: 192")
    for section, content in settings.items():
        _complain_unless_known(str(section), f"in {path}")
        if isinstance(content, dict):
            for key in content:
                _complain_unless_known(f"{section}.{key}", f"in {path}")


def _complain_unless_known(key: str, where: str) -> None:
    keys = known_keys()
    if key in keys or key.startswith("model.overrides"):
        return
    close = difflib.get_close_matches(key, keys, 1) or difflib.get_close_matches(key.split(".")[-1], keys, 1, 0.4)
    hint = f" Did you mean {close[0]}?" if close else " See --help for all settings."
    raise UserError(f"There is no setting {key} ({where}).{hint}")


def _apply_preset(head: HeadConfig) -> None:
    for name, value in F2C.items() if head.preset == "f2c" else ():
        if getattr(head, name) not in (value, getattr(HeadConfig, name)):
            raise UserError(f"head.{name} is {getattr(head, name)}, but head.preset f2c stands for {value}. Drop one.")
        setattr(head, name, value)


def _check_values(config: Config) -> None:
    positive = {
        "data.batch_size": config.data.batch_size,
        "train.accumulation": config.train.accumulation,
        "train.epochs": config.train.epochs,
        "train.steps": 1 if config.train.steps is None else config.train.steps,
        "train.log_every": config.train.log_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.keep_checkpoints": config.train.keep_checkpoints,
        "head.group_size": config.head.group_size,
        "head.pool_size": config.head.pool_size,
        "head.workspace_mb": config.head.workspace_mb,
        "head.scale": 1 if config.head.scale is None else config.head.scale,
        "optim.lr": config.optim.lr,
        "eval.batch_size": config.eval.batch_size,
        "model.embedding_size": config.model.embedding_size,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key} is {value}; it must be above 0.")
    not_negative = {
        "seed": config.seed,
        "data.workers": config.data.workers,
        "data.shift": config.data.shift,
        "head.fresh_weight": config.head.fresh_weight,
        "optim.clip": config.optim.clip,
        "optim.weight_decay": config.optim.weight_decay,
        "eval.every": config.eval.every,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise UserError(f"{key} is {value}; it must not be below 0.")
    shares = {
        "data.id_share": config.data.id_share,
        "head.prefill": config.head.prefill,
        "head.gallery_momentum": config.head.gallery_momentum,
        "optim.warmup": config.optim.warmup,
        "eval.holdout": config.eval.holdout,
    }
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key} is {value}; it must lie between 0 and 1.")
    if config.head.group_size > 127:
        raise UserError(f"head.group_size is {config.head.group_size}; at most 127 features are kept for a slot.")
    if config.eval.pairs < 20:
        raise UserError(f"eval.pairs is {config.eval.pairs}; at least 20 pairs are needed for ten folds.")
