"""Which settings there are, and what to say of one that there is not."""

import difflib
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml

from ffc_ds.errors import UserError


def known_keys(section: type, prefix: str = "") -> list[str]:
    """Every setting of a dataclass as it is written on the command line, without the dashes."""
    keys = []
    for entry in fields(section):
        keys.append(prefix + entry.name)
        if is_dataclass(entry.type):
            keys += known_keys(entry.type, f"{prefix}{entry.name}.")
    return keys


def check_keys(arguments: list[str], known: list[str]) -> None:
    """Raise UserError, with the nearest known key, for one on the command line or in a file that there is not."""
    for argument in arguments:
        key = argument.split("=")[0]
        if key.startswith("--") and key not in ("--config", "--local_rank", "--help"):
            _complain_unless_known(key[2:], known, "on the command line")
    for path in _config_files(arguments):
        _check_file(path, known)


def _config_files(arguments: list[str]) -> list[str]:
    followed = [after for before, after in zip(arguments, arguments[1:], strict=False) if before == "--config"]
    return followed + [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]


def _check_file(path: str, known: list[str]) -> None:
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; it should look like\n  data:\n    batch_size: 192")
    for section, content in settings.items():
        _complain_unless_known(str(section), known, f"in {path}")
        if isinstance(content, dict):
            for key in content:
                _complain_unless_known(f"{section}.{key}", known, f"in {path}")


def _complain_unless_known(key: str, known: list[str], where: str) -> None:
    if key in known or key.startswith("model.overrides"):
        return
    close = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(key.split(".")[-1], known, 1, 0.4)
    hint = f" Did you mean {close[0]}?" if close else " See --help for all settings."
    raise UserError(f"There is no setting {key} ({where}).{hint}")
