"""All ranks train the same: a config file that differs from host to host would have them wait for each other."""

from dataclasses import asdict

from ffc_ds.config.settings import Config
from ffc_ds.distributed import broadcast_object, rank, together
from ffc_ds.errors import UserError

PATHS = {"output_dir", "deepspeed", "resume", "data.train", "eval.bin"}  # may be called otherwise on another host


def check_same_settings(config: Config) -> None:
    """Raise UserError on all ranks, naming a setting, if those of a rank are not those of rank 0."""
    own = _flat(asdict(config))
    wanted = broadcast_object(own)

    def check() -> None:
        for key in wanted.keys() - PATHS:
            if own.get(key) != wanted[key]:
                said = f"{key} is {own.get(key)} on rank {rank()} and {wanted[key]} on rank 0"
                raise UserError(f"{said}: start all ranks with the same settings.")

    together(check)


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        inside = isinstance(value, dict) and not prefix
        flat |= _flat(value, f"{name}.") if inside else {f"{prefix}{name}": value}
    return flat
