"""What the command lines of all scripts have in common: jsonargparse, told what to take and how to say no."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from ffc_ds.config.documents import parse_yaml
from ffc_ds.config.paths import expand_paths, expanded
from ffc_ds.config.values import check_each
from ffc_ds.errors import UserError

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text (in quotes if need be)",
    "PathName": "text (in quotes if need be)",
    "list": "a list",
    "dict": "a mapping, such as {width: 0.5}",
    "NoneType": "null",
}
REFUSED = re.compile(
    'Parser key "(?P<key>.*?)"(?: element \\d+)?: (?:'
    r"Expected an? (?P<kind>.*?)\. Got value: ?(?P<value>.*)|"
    r"Does not validate .*?Subtypes: \[(?P<kinds>.*?)\] Errors: .* Given value: ?(?P<given>.*)|"
    r"(?P<other>.*))"
)


def make_parser(description: str) -> ArgumentParser:
    """A parser, or one of a subcommand, whose help comes from docstrings. It raises instead of leaving."""
    set_loader("settings", parse_yaml, (yaml.YAMLError,))
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        unset_sentinel=True,  # null is a value like any other, and refused where there is to be a number
        import_path_denylist=["*"],  # a setting names no code
    )
    return ArgumentParser(exit_on_error=False, description=description, parser_mode="settings")


def with_underscores(arguments: list[str]) -> list[str]:
    """Options may be written with dashes as well, like --on-error."""
    options = (argument.partition("=") for argument in arguments)
    return [
        "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else name + equals + value
        for name, equals, value in options
    ]


def read_command(parser: ArgumentParser, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand that is asked for, and its settings with `~` and variables replaced. Raises UserError."""
    with refusals("The command cannot be used"):
        parsed = parser.parse_args(arguments)
    command = parsed.subcommand
    settings = parsed[command].as_dict()
    check_each(settings)
    # Each text is taken for a path: what is none has neither ~ nor $.
    return command, {name: expanded(name, value) for name, value in settings.items()}


def read_settings(parser: ArgumentParser, kind: type, arguments: list[str]) -> Any:
    """An instance of the dataclass `kind`, of whose fields the parser knows each. Raises UserError (shared)."""
    try:
        with refusals("The settings cannot be used"):
            parsed = parser.parse_args(arguments)
        settings = kind(**{entry.name: as_written(entry.type, parsed[entry.name]) for entry in fields(kind)})
        check_each(asdict(settings))
        expand_paths(settings)
        return settings
    except UserError as error:
        error.shared = True
        raise


def as_written(kind: type, value: Any) -> Any:
    """A setting of that type from what the parser has for it."""
    return kind(**value.as_dict()) if is_dataclass(kind) else value


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn what the parser refuses into a UserError: `what` it is that cannot be used, and why."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(f"{what}: {_reason(str(error))} (--help explains all settings)") from None


def _reason(message: str) -> str:
    """A message of jsonargparse in words: the setting, its value, what it should be."""
    message = " ".join(message.split())
    found = REFUSED.fullmatch(message)
    if found is None or found["other"]:
        return _short(message if found is None else f"{found['key']}: {found['other']}")
    value = found["value"] or found["given"] or ""
    value = {"": "empty", "None": "null", "True": "true", "False": "false"}.get(value, value)
    return f"{found['key']} is {_short(value)}; it should be {_in_words(found['kind'] or found['kinds'])}"


def _in_words(kinds: str) -> str:
    if choices := re.search(r"Literal\[(.*?)\]", kinds):
        return f"a list of some of {choices[1]}, as [A,B]" if "list[" in kinds.lower() else f"one of {choices[1]}"
    names = re.findall(r"(\w+)(?:\[[^]]*\]|'>)?(?:, |$)", kinds)
    return " or ".join(dict.fromkeys(KINDS.get(name, name) for name in names))


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
