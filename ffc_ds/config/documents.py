"""YAML and JSON files that people write or that a run left: read whole, or refused with one message."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ffc_ds.errors import UserError

LONGEST_YAML, LONGEST = 1 << 18, 1 << 26  # bytes; 256 KiB of YAML can take seconds
MOST_VALUES = 100_000  # of YAML, aliases written out: a few lines of them can stand for billions
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


def read_yaml(path: Path) -> Any:
    """What a YAML file says, see `parse_yaml`. Raises UserError, naming the file."""
    try:
        return parse_yaml(read_text(path, LONGEST_YAML))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML that can be used: {error}.") from None


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises UserError, naming the file, also where it says one thing twice."""
    try:
        return json.loads(read_text(path, LONGEST), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON that can be used: {_reason(error)}.") from None


def read_text(path: Path, longest: int) -> str:
    """The text of a UTF-8 file of at most `longest` bytes, with or without a byte order mark. Raises UserError."""
    try:
        with open(path, "rb") as file:
            content = file.read(longest + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(content) > longest:
        raise UserError(f"{path} is longer than {longest >> 10:,} KiB: this is another kind of file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None


def parse_yaml(text: str) -> Any:
    """What YAML text says, in Python's plain types. Numbers are those of YAML 1.2: 1e-3, but not 1:30 or 2024-01-01.

    Raises yaml.YAMLError with a readable reason, also for what PyYAML would take, or end at in another way: a key that
    is there twice, a tag, aliases that stand for more than `MOST_VALUES`, brackets in brackets without end.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise yaml.YAMLError(_reason(error)) from None


class _Loader(yaml.SafeLoader):
    """In Python, not C, where deep nesting would end the process."""


_DIGITS, _EXPONENT = "[0-9][0-9_]*", "[eE][-+]?[0-9]+"
_NUMBERS = {
    "int": "[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+",
    "float": rf"[-+]?(?:(?:{_DIGITS}\.[0-9_]*|\.[0-9]+)(?:{_EXPONENT})?|{_DIGITS}{_EXPONENT}|\.inf)|\.nan",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] not in (*_NUMBERS, "timestamp", "value")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_form})$"), list("-+.0123456789"))


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for, aliases written out. Raises YAMLError, see `parse_yaml`.

    counts: of the nodes met so far, by id; the largest while a node is not done, which may hold itself.
    """
    if id(node) in counts:
        return counts[id(node)]
    if node.tag not in PLAIN:
        raise yaml.YAMLError(f"{node.tag.replace('tag:yaml.org,2002:', '!!')} in {_line(node)} is a tag: leave it out")
    counts[id(node)] = MOST_VALUES
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_twice([key for key, _ in parts if isinstance(key, yaml.ScalarNode) and key.value != "<<"])
        parts = [part for pair in parts for part in pair]
    count = 1 + sum(_count_values(part, counts) for part in parts)
    if count > MOST_VALUES:
        raise yaml.YAMLError(f"what begins in {_line(node)} stands for more than {MOST_VALUES:,} values by its aliases")
    counts[id(node)] = count
    return count


def _refuse_twice(keys: list[yaml.ScalarNode]) -> None:
    times = Counter(key.value for key in keys)
    for key in reversed(keys):
        if times[key.value] > 1:
            raise yaml.YAMLError(f"{key.value} is there twice, again in {_line(key)}: keep one")


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice} is there twice: keep one")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        tab = ": indent with blanks, not with tabs" if "'\\t'" in str(error.problem) else ""
        return ", ".join(part for part in (error.context, error.problem) if part) + where + tab
    return " ".join(str(error).split())
