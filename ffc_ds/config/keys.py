"""Which settings there are, what files and the command line say of them, and what to say of one that there is not."""

import difflib
import reprlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ffc_ds.config.documents import parse_yaml, read_yaml
from ffc_ds.config.paths import expanded, find_file
from ffc_ds.errors import UserError

LINE = "on the command line"
ELSEWHERE = ("--", "--local_rank", "--help")


def known_keys(section: type, prefix: str = "") -> dict[str, type]:
    """Every setting of a dataclass as it is written on the command line, without the dashes, and its type."""
    keys = {}
    for entry in fields(section):
        keys[prefix + entry.name] = entry.type
        if is_dataclass(entry.type):
            keys |= known_keys(entry.type, f"{prefix}{entry.name}.")
    return keys


def in_order(arguments: list[str], known: dict[str, type]) -> Iterator[tuple[str, dict[str, Any] | list[str]]]:
    """The parts of a command line, the later overruling the earlier: what to call each, and the settings of a file by
    dotted key, or arguments as they stand.

    A file is given by `--config`, or by the name of a section such as `--data`, for which `{KEY: VALUE}` serves too.
    Raises UserError for a key that is not known, and for a file that holds no settings.
    """
    plain, rest = [], iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if option == "--config" or (option.startswith("--") and is_dataclass(known.get(name))):
            if plain:
                yield LINE, plain
            plain = []
            yield _read(name, value if equals else next(rest, ""), known)
            continue
        if option.startswith("--") and option not in ELSEWHERE and not name.startswith("model.overrides."):
            _check_key(name, known, LINE)
        plain.append(argument)
    if plain:
        yield LINE, plain


def _read(name: str, value: str, known: dict[str, type]) -> tuple[str, dict[str, Any]]:
    """Where settings are, and what they are, for `--config FILE`, `--SECTION FILE` or `--SECTION {KEY: VALUE}`."""
    if not value:
        raise UserError(f"--{name} names no file.")
    if name != "config" and value.lstrip().startswith("{"):
        try:
            return LINE, _settings({name: parse_yaml(value)}, known, LINE)
        except yaml.YAMLError as error:
            raise UserError(f"--{name} {value}: {error}.") from None
    path = Path(find_file(expanded(name, value)))
    content = read_yaml(path) if name == "config" else {name: read_yaml(path)}
    return f"in {path}", _beside(path, _settings(content, known, f"in {path}"))


def _beside(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A ds_config may lie beside the file that names it."""
    name = settings.get("deepspeed")
    if not isinstance(name, str) or name == "auto":
        return settings
    return settings | {"deepspeed": find_file(expanded("deepspeed", name), file.parent)}


def _settings(content: Any, known: dict[str, type], where: str) -> dict[str, Any]:
    """Settings by dotted key from a mapping of sections."""
    if not isinstance(content, dict) or not content:
        raise UserError(f"There are no settings {where}; they should look like\n  data:\n    batch_size: 192")
    settings = {}
    for name, value in content.items():
        _check_key(str(name), known, where)
        entries = {name: value}
        if is_dataclass(known[name]):
            if not isinstance(value, dict):
                what = "is empty" if value is None else f"is {reprlib.repr(value)}"
                raise UserError(f"{name} {what} ({where}), but settings belong under it: {name}: {{KEY: VALUE}}.")
            entries = {f"{name}.{key}": each for key, each in value.items()}
        for key, each in entries.items():
            _check_key(key, known, where)
            if key in settings:
                raise UserError(f"{key} is there twice ({where}): keep one.")
            settings[key] = each
    return settings


def _check_key(key: str, known: dict[str, type], where: str) -> None:
    if key in known:
        return
    if ":" in key:
        raise UserError(f"{key!r} ({where}) is no setting: there is no blank after its colon.")
    close = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(key.split(".")[-1], known, 1, 0.4)
    hint = f" Did you mean {close[0]}?" if close else " See --help for all settings."
    raise UserError(f"There is no setting {key} ({where}).{hint}")
