"""Whatever is written into a recipe, a command line or a ds_config ends in settings, or in one message."""

import json
from dataclasses import asdict

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ffc_ds.config.ds_config import fill_ds_config, read_ds_config
from ffc_ds.config.keys import known_keys
from ffc_ds.config.settings import Config, parse_config
from ffc_ds.errors import UserError
from tests.launched import ROOT

KNOWN = known_keys(Config)
RECIPE = (ROOT / "launch" / "recipes" / "quickstart.yaml").read_bytes()
DS_CONFIG = json.loads((ROOT / "ds_configs" / "bf16.json").read_text())
TEXTS = ["", "0.5", "1e3", "nan", "-inf", "null", "yes", "auto", "~", "~/x", "$HOME", "$NOBODY", "${}", "[a, b]", "["]
TEXTS += ["{width:0.5}", "{a: {b: c}}", "!!set {a}", "&a [*a]", "<<: *a", "\t", "\0", "é", "\ud800"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**31, 2**64, -(10**30)]) | st.integers(),
    st.sampled_from([0.0, 0.5, -1.0, 1e-320, 1e308]) | st.floats(),
    st.sampled_from(TEXTS) | st.text(max_size=6),
)
NAMES = st.sampled_from(["class_path", "init_args", "width", "0"]) | st.text(max_size=3)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=2), max_leaves=4)
PLACES = [(), ("bf16", "enabled"), ("optimizer", "params", "lr"), *((key,) for key in DS_CONFIG)]
BYTES = st.sampled_from([text.encode(errors="replace") for text in TEXTS]) | st.binary(max_size=6)
few = settings(max_examples=40, derandomize=True, database=None)


def settings_or_message(arguments):
    try:
        config = parse_config(arguments)
    except UserError as error:
        assert 5 < len(str(error)) < 2000 and error.shared
        return None
    again = yaml.safe_load(yaml.safe_dump(asdict(config)))  # as a run writes them
    assert type(again["optim"]["lr"]) is float and type(again["output_dir"]) is str
    return config


@few
@given(st.dictionaries(st.sampled_from(list(KNOWN)), VALUES, min_size=1, max_size=2))
def test_any_value_in_a_recipe(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("recipe") / "odd.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=False))
    settings_or_message(["--config", str(path)])


@few
@given(st.sampled_from(list(KNOWN)), VALUES, st.booleans())
def test_any_value_on_the_command_line(key, value, joined):
    text = value if isinstance(value, str) else json.dumps(value)
    settings_or_message([f"--{key}={text}"] if joined else [f"--{key}", text])


@few
@given(st.integers(0, len(RECIPE)), st.integers(0, 30), BYTES)
@example(0, 0, b"\xef\xbb\xbf")
@example(0, 0, b"\xff\xfe")
def test_any_change_of_a_recipe(tmp_path_factory, place, removed, added):
    path = tmp_path_factory.mktemp("recipe") / "odd.yaml"
    path.write_bytes(RECIPE[:place] + added + RECIPE[place + removed :])
    settings_or_message(["--config", str(path)])


@few
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_in_a_ds_config(tmp_path_factory, where, value):
    content = value
    for key in reversed(where):
        content = {key: content}
    content = DS_CONFIG | content if where else content
    path = tmp_path_factory.mktemp("ds") / "odd.json"
    path.write_text(json.dumps(content))
    if settings_or_message(["--deepspeed", str(path)]) is None:
        return
    try:
        filled = fill_ds_config(read_ds_config(str(path)), str(path), Config(), ranks=1)
    except UserError:
        return
    assert filled["train_batch_size"] == 192 and "auto" not in json.dumps(filled)
