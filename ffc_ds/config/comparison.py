"""Settings of two runs side by side: what is different, and whether the classes of one can go on in the other."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from ffc_ds.config.settings import Config
from ffc_ds.errors import UserError

# What may be called otherwise on another host.
PATHS = {"output_dir", "deepspeed", "resume", "data.train", "eval.bin", "model.weights", "head.weights"}


def changes(before: dict, config: Config, apart_from: Collection[str] = PATHS) -> list[str]:
    """The settings of a run that are not those that it had before (`asdict` of its Config)."""
    earlier, now = flat(before), flat(asdict(config))
    different = sorted(key for key in earlier.keys() & now.keys() - apart_from if earlier[key] != now[key])
    return [f"{key} {earlier[key]} -> {now[key]}" for key in different]


def flat(settings: dict, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; what a setting itself holds stays whole."""
    found = {}
    for name, value in settings.items():
        inside = isinstance(value, dict) and not prefix
        found |= flat(value, f"{name}.") if inside else {f"{prefix}{name}": value}
    return found


def check_handing_on(place: str, before: Mapping[str, Any], config: Config) -> None:
    """Raise UserError if a run with the settings `before`, by dotted key, keeps no classes that could go on in one with
    `config` (head.weights). place: where it lies."""
    name, pool = before.get("head.name"), before.get("head.pool")
    if name not in ("full_fc", "partial_fc") and (name, pool) != ("ffc", "drawn"):
        of = f"head.name {name}" + (f" with head.pool {pool}" if name == "ffc" else "")
        raise UserError(
            f"head.weights: {place} is of a run with {of}, which keeps nothing of single identities that another run "
            "could go on with. full_fc, partial_fc and ffc with head.pool drawn do; leave head.weights out."
        )
    for key, own in {
        "model.embedding_size": config.model.embedding_size,
        "head.sub_centers": 1 if config.head.name == "ffc" else config.head.sub_centers,
    }.items():
        if (there := before.get(key, 1)) != own:
            raise UserError(f"head.weights: {key} is {there} in {place} and {own} here. It must be the same.")
