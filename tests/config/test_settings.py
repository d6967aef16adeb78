import contextlib
import os
import sys

import pytest
import yaml

from ffc_ds.config.keys import known_keys
from ffc_ds.config.settings import Config, parse_config, save_config
from ffc_ds.errors import UserError
from ffc_ds.progress import say_once


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        parse_config(list(arguments))
    return str(caught.value)


def test_the_command_line_overrules_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {batch_size: 96, loader: id}\nmodel:\n  overrides: {width: 0.5}\n")
    config = parse_config(["--config", str(file), "--data.batch_size", "48", "--local_rank=1"])
    assert (config.data.batch_size, config.data.loader) == (48, "id")
    assert config.model.overrides == {"width": 0.5}
    assert config.data.train == Config().data.train


@pytest.mark.parametrize(
    ("typed", "unread"),
    [
        (["--head.name", "full_fc", "--head.pool_size", "0.2"], "head.name full_fc does not read head.pool_size"),
        (
            ["--head.name", "ffc", "--class_optim.lr_factor=2", "--head.group_size", "2", "--head.fresh_weight=0.5"],
            "head.name ffc and head.pool drawn does not read class_optim.lr_factor, head.fresh_weight, head.group_size",
        ),
        (
            ["--head", "{pool: lru, center_momentum: 0.25}"],
            "head.name ffc and head.pool lru does not read head.center_momentum",
        ),
        (["--head.name", "metric", "--head.margin", "arc"], "head.name metric does not read head.margin"),
        (["--head.name", "partial_fc", "--head.sample_rate", "0.2", "--class_optim.lr_factor", "2"], None),
        (["--head.pool_size", "0.2", "--data.batch_size", "96", "--model.overrides.width", "0.5"], None),
    ],
)  # fmt: skip
def test_what_is_typed_for_another_head_is_said_to_do_nothing(capsys, tmp_path, typed, unread):
    say_once.cache_clear()
    (tmp_path / "run.yaml").write_text("head: {sample_rate: 0.3}")  # which serves several heads
    parse_config(["--config", str(tmp_path / "run.yaml"), *typed])
    assert capsys.readouterr().out == (f"warning: {unread}\n" if unread else "")


def test_a_saved_config_repeats_the_run(tmp_path):
    config = parse_config(["--head.margin", "arc", "--train.steps", "7", "--model.overrides", "{width: 0.5}"])
    save_config(config, tmp_path / "config.yaml")
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_every_recipe_can_be_read():
    from pathlib import Path

    recipes = list((Path(__file__).parents[2] / "launch" / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        parse_config(["--config", str(recipe)])


def test_the_f2c_preset_is_the_released_code():
    head = parse_config(["--head.preset", "f2c"]).head
    assert (head.group_size, head.prefill, head.hide_unfilled, head.own_rows_only) == (2, 0.0, False, False)
    assert head.loss_terms == "sum"


def test_what_a_file_says_is_not_overruled_by_a_preset_in_silence(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"head": {"preset": "f2c", "group_size": 3}}))  # the default
    assert "head.group_size is 3, but head.preset f2c stands for 2" in refusal("--config", str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("key", ["data.bach_size", "head.pol_size", "sed"])
def test_a_misspelt_key_is_named_with_the_right_one(tmp_path, key):
    section, _, name = key.rpartition(".")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({section: {name: 1}} if section else {name: 1}))
    for message in (refusal(f"--{key}", "1"), refusal("--config", str(tmp_path / "run.yaml"))):
        assert key in message and "Did you mean" in message


FULL_FC = ("--head.name", "full_fc")


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--data.batch_size", "many"), ["data.batch_size", "many"]),
        (("--data.batch_size", "0"), ["data.batch_size", "above 0"]),
        (("--head.prefill", "2"), ["head.prefill", "between 0 and 1"]),
        (("--head.margin", "cosface"), ["head.margin", "'am'"]),
        (("--config", "nowhere.yaml"), ["nowhere.yaml", "No such file"]),
        (("--config",), ["--config names no file"]),
        (("--config=",), ["--config names no file"]),
        (("--data.batch_size=",), ["data.batch_size is empty", "whole number"]),
        (("--data.batch_size",), ["data.batch_size", "expected one argument"]),
        (("--data.batch_size", "1.5"), ["data.batch_size is 1.5", "whole number"]),
        (("--data.batch_size", "true"), ["data.batch_size is true", "whole number"]),
        (("--data.batch_size", "9" * 30), ["data.batch_size", "below 2^32"]),
        (("--optim.lr", "null"), ["optim.lr is null", "a number"]),
        (("--optim.lr", "nan"), ["optim.lr is nan", "a number"]),
        (("--optim.lr", ".nan"), ["optim.lr is nan", "finite"]),
        (("--optim.lr", "1e999"), ["optim.lr is inf", "finite"]),
        (("--train.step_timeout", "1e12"), ["train.step_timeout", "10,000,000 at most"]),
        (("--eval.pairs", "1000000000"), ["eval.pairs", "10,000,000 at most"]),
        (("--optim.milestones", "3"), ["optim.milestones is 3", "a list"]),
        (("--optim.milestones", "[8, 14, 17]"), ["optim.milestones is [8.0, 14.0, 17.0]", "shares of the run"]),
        (("--optim.milestones", "[0.0]"), ["optim.milestones is [0.0]", "above 0 and below 1"]),
        (("--head.name", "full_fc", "--class_optim.momentum", "1.5"), ["class_optim.momentum", "between 0 and 1"]),
        (("--optim.milestones", "[0.1, .nan]"), ["optim.milestones is nan", "finite"]),
        (("--train.steps", "many"), ["train.steps is many", "a whole number or null"]),
        (("--head.combined", "[1, a, 0]"), ["head.combined is a", "a number"]),
        (("--eval.bin=",), ["eval.bin is empty"]),
        (("--output_dir", ""), ["output_dir is empty"]),
        (("--data.train", "[a/b, ${HOME}/c]"), ["data.train", "no list", "in quotes"]),
        (("--data", "{batch_size: 96, batch_size: 48}"), ["--data", "batch_size is there twice"]),
        (("--data", "nowhere.yaml"), ["nowhere.yaml", "No such file"]),
        (("--model.overrides", "{width:0.5}"), ["{width:0.5} lacks a blank", "{width: 0.5}"]),
        (("--model.overrides", "{width=0.5}"), ["{width=0.5} lacks a blank", "{width: 0.5}"]),
        (("--model.overrides", "{width}"), ["model.overrides.width is null"]),
        (("--model.overrides", "0.5"), ["model.overrides is 0.5", "a mapping, such as {width: 0.5}"]),
        (("--model.overrides", "{width: .nan}"), ["model.overrides.width is nan", "finite"]),
        (("--model.overrides", "{1: 2}"), ["model.overrides", "1 is no name"]),
        (("--model.overrides", "{image_size: 64}"), ["would be overruled", "model.image_size"]),
        (("--model.overridesx", "{width: 0.5}"), ["model.overridesx", "Did you mean model.overrides?"]),
        (("--deepspeed", "nowhere.json"), ["deepspeed: nowhere.json", "No such file", "ds_configs"]),
        (("stray",), ["stray"]),
        (("--head.combined", "[0, 0.3, 0.2]"), ["head.combined", "m1 above 0"]),
        (("--head.margin_strength", "-1"), ["head.margin_strength", "not be below 0"]),
        (("--head.adaface_h", "0.5"), ["head.adaface_h is 0.5", "am does not read it", "adaface would"]),
        (("--head.margin", "magface", "--head.margin_strength", "0.5"), ["head.margin_strength is 0.5", "magface"]),
        (("--head.margin", "sv", "--head.straight_through", "true"), ["head.straight_through", "arc, combined would"]),
        (("--head.margin", "adaface", *FULL_FC, "--head.adaface_t_alpha", "0"), ["adaface_t_alpha is 0.0", "above 0"]),
        (("--head.margin", "magface", *FULL_FC, "--head.magface_bounds", "[9]"), ["magface_bounds is [9.0]", "upper"]),
        (("--head.margin", "magface", *FULL_FC, "--head.magface_bounds", "[9, 9]"), ["magface_bounds", "above"]),
        (("--head.margin", "sphereface", "--head.margin_strength", "0.5"), ["margin_strength is 0.5", "at least 1"]),
        (("--head.margin", "elastic_cos", *FULL_FC, "--head.elastic_std", "-1"), ["elastic_std is -1.0", "below 0"]),
        (("--head.margin", "adaface", "--head.pool", "lru"), ["head.margin adaface", "not for head.pool lru", "sv"]),
        (("--head.name", "virtual_fc", "--head.sub_centers", "3"), ["head.sub_centers is 3", "virtual_fc", "full_fc"]),
        (("--head.name", "full_fc", "--head.sub_centers", "0"), ["head.sub_centers is 0", "above 0"]),
        (("--head.weights", "runs/a", "--head.name", "metric"), ["head.weights runs/a", "metric has no class state"]),
        (("--head.weights", "runs/a", "--head.name", "virtual_fc"), ["head.weights", "stands for a group"]),
        (("--head.init", "features", "--head.pool", "lru"), ["head.init features", "the latest identities only"]),
        (("--head.init", "features", *FULL_FC, "--head.sub_centers", "2"), ["the 2 head.sub_centers", "the same"]),
        (("--head.preset", "f2c", "--head.group_size", "3"), ["head.group_size is 3", "f2c stands for 2"]),
        (("--head.preset", "f2c", "--head.prefill", "0.5"), ["head.prefill is 0.5", "f2c stands for 0.0"]),
        (("--head.preset", "f2c", "--head.name", "full_fc"), ["head.preset f2c", "full_fc"]),
    ],
)
def test_values_that_cannot_be_used(arguments, mentions):
    message = refusal(*arguments)
    assert all(word in message for word in mentions), message


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("", ["no settings", "batch_size: 192"]),
        ("3", ["no settings"]),
        ("[data]", ["no settings"]),
        ("data:", ["data is empty", "data: {KEY: VALUE}"]),
        ("data: null", ["data is empty"]),
        ("data: [1]", ["data is [1]"]),
        ("data: os.path", ["data is 'os.path'"]),
        ("data: {batch_size:96}", ["data.batch_size:96", "no blank after its colon"]),
        ("data.batch_size: 4\ndata: {batch_size: 8}", ["data.batch_size is there twice"]),
        ("optim: {lr: null}", ["optim.lr is null", "a number"]),
        ("optim: {lr: true}", ["optim.lr is true", "a number"]),
        ("optim: {milestones: null}", ["optim.milestones is null", "a list"]),
        ("output_dir: 2024", ["output_dir is 2024", "text (in quotes if need be)"]),
        ("output_dir: null", ["output_dir is null", "text"]),
        ("output_dir: [a]", ["output_dir is ['a']", "text"]),
        ("tracking: {name: on}", ["tracking.name is true", "text (in quotes if need be) or null"]),
        ("data: {train: {a: b}}", ["data.train is {'a': 'b'}", "a list or text"]),
        ("data: {train: [a, null]}", ["data.train is ['a', None]", "a list or text"]),
        ("model: {overrides: null}", ["model.overrides is null", "a mapping"]),
        ("model: {overrides: {width:0.5}}", ["{width:0.5} lacks a blank"]),
        ("model: {overrides: {width: {a: 1}}}", ["model.overrides.width is {'a': 1}"]),
        ("model.overrides.width: 0.5", ["model.overrides.width", "Did you mean model.overrides?"]),
        ("1: 2", ["There is no setting 1"]),
    ],
)
def test_a_recipe_that_cannot_be_used(tmp_path, text, mentions):
    (tmp_path / "run.yaml").write_text(text)
    message = refusal("--config", str(tmp_path / "run.yaml"))
    assert all(word in message for word in mentions), message


def test_of_two_recipes_the_later_wins(tmp_path):
    for name, text in (("a", "{seed: 1, data: {batch_size: 12, shift: 3}}"), ("b", "data: {batch_size: 24}")):
        (tmp_path / name).write_text(text)
    config = parse_config([f"--config={tmp_path}/a", "--data.shift=1", "--config", f"{tmp_path}/b"])
    assert (config.seed, config.data.batch_size, config.data.shift) == (1, 24, 1)


def test_a_section_may_be_given_by_itself(tmp_path):
    (tmp_path / "data.yaml").write_text("{batch_size: 12, shift: 3}")
    for given in (f"--data={tmp_path}/data.yaml", "--data={batch_size: 12, shift: 3}"):
        data = parse_config([given, "--data.shift", "1"]).data
        assert (data.batch_size, data.shift) == (12, 1)


def test_a_recipe_may_come_from_a_pipe():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("seed: 7")
    assert parse_config(["--config", f"/dev/fd/{reading}"]).seed == 7
    os.close(reading)


def test_settings_name_no_code(tmp_path, monkeypatch):
    (tmp_path / "odd_code.py").write_text("raise SystemExit('imported')\n\nclass Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("{class_path: odd_code.Thing}", "{width: {class_path: odd_code.Thing}}", "odd_code.Thing"):
        for key in ("data", "data.train", "model.overrides", "head.margin", "optim.milestones", "train.steps"):
            with contextlib.suppress(UserError):
                parse_config([f"--{key}", value])
            (tmp_path / "run.yaml").write_text(f"{key}: {value}")
            with contextlib.suppress(UserError):
                parse_config(["--config", str(tmp_path / "run.yaml")])
    assert "odd_code" not in sys.modules


def test_every_setting_is_explained(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for key in known_keys(Config):
        assert f"--{key}" in shown, key
    assert "Where images come from" in shown or "Hub name, folder of parquet files" in shown
