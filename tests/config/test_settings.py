import pytest
import yaml

from ffc_ds.config.keys import known_keys
from ffc_ds.config.settings import Config, parse_config, save_config
from ffc_ds.errors import UserError


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


@pytest.mark.parametrize("key", ["data.bach_size", "head.pol_size", "sed"])
def test_a_misspelt_key_is_named_with_the_right_one(tmp_path, key):
    section, _, name = key.rpartition(".")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({section: {name: 1}} if section else {name: 1}))
    for message in (refusal(f"--{key}", "1"), refusal("--config", str(tmp_path / "run.yaml"))):
        assert key in message and "Did you mean" in message


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--data.batch_size", "many"), ["data.batch_size", "many"]),
        (("--data.batch_size", "0"), ["data.batch_size", "above 0"]),
        (("--head.prefill", "2"), ["head.prefill", "between 0 and 1"]),
        (("--head.margin", "cosface"), ["head.margin", "'am'"]),
        (("--config", "nowhere.yaml"), ["nowhere.yaml", "No such file"]),
        (("stray",), ["stray"]),
        (("--head.combined", "[0, 0.3, 0.2]"), ["head.combined", "m1 above 0"]),
        (("--head.margin_strength", "-1"), ["head.margin_strength", "not be below 0"]),
        (("--head.preset", "f2c", "--head.group_size", "3"), ["head.group_size is 3", "f2c stands for 2"]),
        (("--head.preset", "f2c", "--head.prefill", "0.5"), ["head.prefill is 0.5", "f2c stands for 0.0"]),
        (("--head.preset", "f2c", "--head.name", "full_fc"), ["head.preset f2c", "full_fc"]),
    ],
)
def test_values_that_cannot_be_used(arguments, mentions):
    message = refusal(*arguments)
    assert all(word in message for word in mentions), message


def test_every_setting_is_explained(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for key in known_keys(Config):
        assert f"--{key}" in shown, key
    assert "Where images come from" in shown or "Hub name, folder of parquet files" in shown
