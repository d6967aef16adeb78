"""YAML and JSON of people: what numbers are, and each way in which a file is no document."""

import json
import os

import pytest
import yaml

from ffc_ds.config.documents import LONGEST_YAML, parse_yaml, read_json, read_yaml
from ffc_ds.errors import UserError

NINE_TO_THE_TWENTIETH = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(9 * [f'*{old}'])}]\n"
    for old, new in zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True)
)
NOT_YAML = {
    "a tab": ("data:\n\tbatch_size: 3", r"\(line 2, column 1\): indent with blanks, not with tabs"),
    "a key twice": ("optim: {lr: 0.1, lr: 0.2}", "lr is there twice, again in line 1: keep one"),
    "a section twice": ("data: {}\nmodel: {}\ndata: {}", "data is there twice, again in line 3"),
    "code": ("a: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system in line 1 is a tag"),
    "a set": ("a: !!set {b}", "!!set in line 1 is a tag"),
    "its own tag": ("a: !b c", "!b in line 1 is a tag"),
    "aliases of aliases": (NINE_TO_THE_TWENTIETH, "more than 100,000 values by its aliases"),
    "a list of itself": ("a: &a [*a]", "more than 100,000 values by its aliases"),
    "a mapping of itself": ("a: &a {b: *a}", "more than 100,000 values by its aliases"),
    "merged aliases": ("a: &a {x: 1}\nb: &b {<<: [*a, *b]}", "more than 100,000 values by its aliases"),
    "an unknown alias": ("a: *b", "found undefined alias 'b'"),
    "brackets without end": ("a: " + "[" * 2000, "nested too deeply"),
    "lists without end": ("- " * 2000, "nested too deeply"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "a list for a key": ("? [a]\n: 3", "unhashable key"),
    "an open quote": ("a: 'b", "unexpected end of stream"),
    "too many digits": ("a: " + "9" * 5000, "digits"),
    "no number": ("a: !!int b", "invalid literal"),
    "no boolean": ("a: !!bool b", "'b'"),
    "a control character": ("a: \x01", "not allowed"),
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E+5", -2e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("0x1F", 31),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("generated:1000:32", "generated:1000:32"),
        ("1e", "1e"),
        ("=", "="),
        ("~", None),
        ("on", True),
        ("'on'", "on"),
        ("[1, 0.5, a]", [1, 0.5, "a"]),
        ("&a {b: 1}", {"b": 1}),
        ("!!str 12", "12"),
    ],
)
def test_what_a_value_is(text, value):
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


def test_infinite_and_merged_values():
    assert parse_yaml("[-.inf, .inf]") == [-float("inf"), float("inf")] and parse_yaml(".nan") != parse_yaml(".nan")
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("kind", NOT_YAML)
def test_yaml_that_cannot_be_used(tmp_path, kind):
    text, message = NOT_YAML[kind]
    with pytest.raises(yaml.YAMLError, match=message):
        parse_yaml(text)
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"odd\.yaml is not YAML that can be used: .*{message}"):
        read_yaml(tmp_path / "odd.yaml")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_the_lines_of_windows_are_harmless(tmp_path, start, end):
    path = tmp_path / "file"
    path.write_bytes(start + end.join([b"# \xc3\xa9", b"data:", b"  train: caf\xc3\xa9", b""]))
    assert read_yaml(path) == {"data": {"train": "café"}}
    path.write_bytes(start + end.join([b"{", b'"train": "caf\xc3\xa9"', b"}"]))
    assert read_json(path) == {"train": "café"}


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_what_is_no_text(tmp_path, read):
    path = tmp_path / "file"
    for content, message in (
        (b"\xff\xfea\x00", r"not UTF-8 text \(byte 0\)"),
        (b'"caf\xe9"', r"not UTF-8 text \(byte 4\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"file is {message}"):
            read(path)
    for missing, message in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file"), ("a\0b", "null byte")):
        with pytest.raises(UserError, match=f"cannot be read: .*{message}"):
            read(missing)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "file"
    path.touch(mode=0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_yaml(path)


def test_a_file_that_is_too_long_for_settings(tmp_path):
    path = tmp_path / "file"
    path.write_text("a: " + "b" * (LONGEST_YAML - 3))
    assert len(read_yaml(path)["a"]) == LONGEST_YAML - 3
    path.write_text("a: " + "b" * (LONGEST_YAML - 2))
    with pytest.raises(UserError, match="longer than 256 KiB"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 column 2"),
        ("", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": {"b": 1, "b": 2}}', "b is there twice"),
        ("9" * 5000, "digits"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UserError, match=rf"odd\.json is not JSON that can be used: .*{message}"):
        read_json(tmp_path / "odd.json")


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"a": [1, 2.5, None, True, {"b": "é"}], "c": float("inf")}
    (tmp_path / "file").write_text(json.dumps(value))
    assert read_json(tmp_path / "file") == value
