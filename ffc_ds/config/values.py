"""The bounds of the settings."""

from dataclasses import asdict
from math import inf, isfinite
from typing import Any

from ffc_ds.config.margins import check_margin
from ffc_ds.data.bounds import check_max_megapixels
from ffc_ds.errors import UserError

KEEPS_NO_CLASSES = {
    "metric": "head.name metric has no class state",
    "virtual_fc": "an anchor of head.name virtual_fc stands for a group, which is another one with other identities",
    "lru": "head.pool lru holds the latest identities only, in slots that all of them share",
}

MOST_PAIRS = 10_000_000  # that take some hundred bytes each
MOST_MINUTES = 10_000_000  # that fit into the milliseconds of torch's store


def check_values(config) -> None:
    """Raise UserError, naming the setting, for a number out of its bounds, an empty text, an override of no use."""
    check_each(asdict(config))
    positive = {
        "data.batch_size": config.data.batch_size,
        "data.min_images": config.data.min_images,
        "train.accumulation": config.train.accumulation,
        "train.epochs": config.train.epochs,
        "train.steps": 1 if config.train.steps is None else config.train.steps,
        "train.log_every": config.train.log_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.keep_checkpoints": config.train.keep_checkpoints,
        "train.max_refused_steps": config.train.max_refused_steps,
        "train.open_timeout": config.train.open_timeout,
        "train.step_timeout": config.train.step_timeout,
        "head.group_size": config.head.group_size,
        "head.pool_size": config.head.pool_size,
        "head.workspace_mb": config.head.workspace_mb,
        "head.scale": 1 if config.head.scale is None else config.head.scale,
        "head.sample_rate": config.head.sample_rate,
        "head.group_identities": config.head.group_identities,
        "optim.lr": config.optim.lr,
        "optim.backbone_lr_factor": config.optim.backbone_lr_factor,
        "optim.power": config.optim.power,
        "class_optim.lr_factor": config.class_optim.lr_factor,
        "eval.batch_size": config.eval.batch_size,
        "model.embedding_size": config.model.embedding_size,
        "model.image_size": config.model.image_size,
    }
    for key, value in positive.items():
        if not 0 < value < inf:
            raise UserError(f"{key} is {value}; it must be above 0.")
    not_negative = {
        "seed": config.seed,
        "data.workers": config.data.workers,
        "data.shift": config.data.shift,
        "head.fresh_weight": config.head.fresh_weight,
        "head.interclass_filter": config.head.interclass_filter,
        "head.margin_strength": config.head.margin_strength or 0,
        "class_optim.weight_decay": config.class_optim.weight_decay,
        "optim.clip": config.optim.clip,
        "optim.lr_batch": config.optim.lr_batch,
        "optim.weight_decay": config.optim.weight_decay,
        "train.final_save_minutes": config.train.final_save_minutes,
        "eval.every": config.eval.every,
        "train.head_only_steps": config.train.head_only_steps,
        "train.max_rewinds": config.train.max_rewinds,
        "train.profile": config.train.profile,
    }
    for key, value in not_negative.items():
        if not 0 <= value < inf:
            raise UserError(f"{key} is {value}; it must not be below 0.")
    shares = {
        "data.id_share": config.data.id_share,
        "data.erase": config.data.erase,
        "data.low_resolution": config.data.low_resolution,
        "data.blur": config.data.blur,
        "data.grey": config.data.grey,
        "data.colour": config.data.colour,
        "data.max_replaced": config.data.max_replaced,
        "head.prefill": config.head.prefill,
        "head.sample_rate": config.head.sample_rate,
        "head.gallery_momentum": config.head.gallery_momentum,
        "head.center_momentum": 0.0 if config.head.center_momentum == "auto" else config.head.center_momentum,
        "optim.momentum": config.optim.momentum,
        "class_optim.momentum": config.class_optim.momentum,
        "optim.warmup": config.optim.warmup,
        "eval.holdout": config.eval.holdout,
    }
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key} is {value}; it must lie between 0 and 1.")
    for key, value in {"data.crop": config.data.crop, "train.average": config.train.average}.items():
        if not 0 <= value < 1:
            raise UserError(f"{key} is {value}; it must be at least 0 and below 1.")
    if not all(0 < share < 1 for share in config.optim.milestones):
        raise UserError(
            f"optim.milestones is {config.optim.milestones}; they are shares of the run, each above 0 and below 1."
        )
    check_max_megapixels(config.data.max_megapixels, "data.max_megapixels")
    if config.head.group_size > 127:
        raise UserError(f"head.group_size is {config.head.group_size}; at most 127 features are kept for a slot.")
    if config.eval.pairs < 20:
        raise UserError(f"eval.pairs is {config.eval.pairs}; at least 20 pairs are needed for ten folds.")
    most = {
        "eval.pairs": (config.eval.pairs, MOST_PAIRS),
        "train.open_timeout": (config.train.open_timeout, MOST_MINUTES),
        "train.step_timeout": (config.train.step_timeout, MOST_MINUTES),
    }
    for key, (value, limit) in most.items():
        if value > limit:
            raise UserError(f"{key} is {value}; it can be {limit:,} at most.")
    if config.data.images_per_identity < 2 or config.data.images_per_identity % 2:
        raise UserError(
            f"data.images_per_identity is {config.data.images_per_identity}; it must be even, half for each view."
        )
    if config.train.head_only_steps and config.head.name == "metric":
        raise UserError("train.head_only_steps is nothing for head.name metric, which has no weights of its own.")
    _check_overrides(config.model.overrides)
    train = config.data.train
    if isinstance(train, str) and train.startswith("["):
        raise UserError(f"data.train is {train}, which YAML takes for no list: put each name in quotes.")
    if train in ("", []) or (isinstance(train, list) and len(set(train)) < len(train)):
        raise UserError(f"data.train is {train}; it must be the name of a dataset, or a list of different ones.")
    if len(config.head.combined) != 3 or not 0 < config.head.combined[0] < inf:
        raise UserError(f"head.combined is {config.head.combined}; it must be [m1, m2, m3], and m1 above 0.")
    check_margin(config.head)
    _check_start(config.head)


def _check_start(head) -> None:
    asked = [f"head.weights {head.weights}"] if head.weights is not None else []
    asked += [f"head.init {head.init}"] if head.init != "random" else []
    lru = head.name == "ffc" and head.pool == "lru"
    if asked and (reason := KEEPS_NO_CLASSES.get("lru" if lru else head.name)):
        raise UserError(f"{asked[0]} is for heads that keep something of every identity: {reason}.")
    if head.init == "features" and head.sub_centers > 1:
        raise UserError(
            f"head.init features would make the {head.sub_centers} head.sub_centers of an identity the same. Drop one."
        )


def check_each(settings: dict[str, Any], prefix: str = "") -> None:
    """Raise UserError for what can be no setting: an empty text, an infinite number, one that no array could hold."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            check_each(value, f"{key}.")
        for each in value if isinstance(value, list | tuple) else [value]:
            if each == "":
                raise UserError(f"{key} is empty: give it a value, or leave it out.")
            if isinstance(each, float) and not isfinite(each):
                raise UserError(f"{key} is {each}; it must be a finite number.")
            if isinstance(each, int) and abs(each) >= 2**32:
                raise UserError(f"{key} is {each}; it must be below 2^32.")


def _check_overrides(overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UserError(f"model.overrides: {key} is no name of a setting.")
        if value is None and (mark := next((mark for mark in ":=" if mark in key), None)):
            name, _, wanted = key.partition(mark)
            raise UserError(f"model.overrides: {{{key}}} lacks a blank: write {{{name}: {wanted}}}.")
        if value is None or isinstance(value, dict):
            shown = "null" if value is None else value
            raise UserError(f"model.overrides.{key} is {shown}; it must be a value, or a list of them.")
        if key in ("name", "image_size", "embedding_size"):
            raise UserError(f"model.overrides.{key} would be overruled: set model.{key} instead.")
