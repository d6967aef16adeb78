"""Paths in settings: `~` and environment variables in them, and where the files that come with the project lie."""

import os
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NewType, get_args

from ffc_ds.errors import UserError

PathName = NewType("PathName", str)  # the type of a setting that is a path, or perhaps a name on the hub
VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]*)\})", re.ASCII)
PROJECT = Path(__file__).parents[2]


def expand_paths(config: Any, prefix: str = "") -> None:
    """`expanded` for every setting of a dataclass, and of those in it, whose type is made of `PathName`."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            expand_paths(value, f"{prefix}{entry.name}.")
        elif _is_path(entry.type):
            setattr(config, entry.name, expanded(prefix + entry.name, value))


def _is_path(kind: Any) -> bool:
    return kind is PathName or any(map(_is_path, get_args(kind)))


def expanded(key: str, value: Any) -> Any:
    """A path, or a list of them, with the home folder for `~` and the values of `$NAME` and `${NAME}`; all else as is.

    Raises UserError, naming the setting `key`, for a variable that is not set, an unknown user, and what no path can
    be. A file that is there under that very name, dollar and all, needs no variable.
    """
    if isinstance(value, list):
        return [expanded(key, each) for each in value]
    if isinstance(value, Path):
        return Path(expanded(key, str(value)))
    if not isinstance(value, str):
        return value

    def variable(found: re.Match) -> str:
        name = found[1] or found[2]
        if os.environ.get(name):
            return os.environ[name]
        if os.path.lexists(value):
            return found[0]
        raise UserError(f"{key} is {value}, but the environment variable {name} is not set, or empty.")

    path = os.path.expanduser(VARIABLE.sub(variable, value))
    if path.startswith("~"):
        raise UserError(f"{key} is {value}, but {path.partition('/')[0]} is nobody's home folder here: write it out.")
    if "\0" in path or not _can_be_encoded(path):
        raise UserError(f"{key} is {path!r}, which can be no path.")
    return path


def _can_be_encoded(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def find_file(name: str, *beside: Path) -> str:
    """Where a file of the project is: at `name` from the current folder, else from the folders `beside`, else from the
    checkout that the running script or this package is in. `name` itself if it is nowhere."""
    script = Path(sys.argv[0]).resolve()
    projects = [script.parents[1]] if script.parent.name == "launch" else []
    for folder in (Path(), *beside, *projects, PROJECT):
        if os.path.exists(folder / name):
            return str(folder / name)
    return name
