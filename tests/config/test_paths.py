"""Paths in settings, wherever a script is started from."""

import os

import pytest

from ffc_ds.config.command_line import read_command
from ffc_ds.config.paths import expanded, find_file
from ffc_ds.config.settings import parse_config
from ffc_ds.errors import UserError
from ffc_ds.evaluation.settings import parse_settings
from tests.launched import ROOT
from tests.scripts import script


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder that is not the project's, a home, and one variable."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/big/data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("$DATA/a", "/big/data/a"),
        ("${DATA}_2/$DATA", "/big/data_2//big/data"),
        ("a~/b$/$1", "a~/b$/$1"),
        ("OWNER/NAME", "OWNER/NAME"),
        ("generated:60:32", "generated:60:32"),
        ("name[:50%]", "name[:50%]"),
        (["~/a", "b"], ["/home/me/a", "b"]),
        (None, None),
        (3, 3),
    ],
)
def test_home_folders_and_variables(text, path):
    assert expanded("data.train", text) == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("$NOWHERE/a", "variable NOWHERE is not set"),
        ("a/${NOWHERE}", "variable NOWHERE is not set"),
        (["a", "$EMPTY/b"], "variable EMPTY is not set, or empty"),
        ("~nobody.of.that.name/a", "~nobody.of.that.name is nobody's home"),
        ("a\0b", "no path"),
        ("\ud800", "no path"),
    ],
)
def test_paths_that_lead_nowhere(text, reason):
    with pytest.raises(UserError, match=f"^data.train is .*{reason}"):
        expanded("data.train", text)


def test_a_file_with_a_dollar_in_its_name_is_that_file(elsewhere):
    (elsewhere / "$NOWHERE").mkdir()
    assert expanded("data.train", "$NOWHERE") == "$NOWHERE"


def test_in_every_path_of_a_run(elsewhere):
    (elsewhere / "run.yaml").write_text(
        "output_dir: ~/run\nresume: $DATA/step-5\neval: {bin: ~/lfw.bin}\n"
        "data: {train: [$DATA/a, ~/b, generated:60:32]}\n"
    )
    config = parse_config(["--config", "run.yaml", "--tracking.name", "$DATA"])
    assert config.output_dir == "/home/me/run" and config.resume == "/big/data/step-5"
    assert config.data.train == ["/big/data/a", "/home/me/b", "generated:60:32"]
    assert config.eval.bin == "/home/me/lfw.bin"
    assert config.tracking.name == "$DATA"  # no path
    for key in ("output_dir", "resume", "deepspeed", "data.train", "eval.bin", "config"):
        with pytest.raises(UserError, match=f"^{key} is .*variable NOWHERE"):
            parse_config([f"--{key}", "$NOWHERE/a"])


def test_in_every_path_of_an_evaluation():
    options = ["--model", "~/run", "--output_dir", "$DATA/out", "--pairs", "~/a.bin", "b.bin", "--ijb", "$DATA/IJBC"]
    options += ["--images", "~/i", "--probes", "~/p", "--distractors", "$DATA/d"]
    found = parse_settings(options)
    assert (found.model, found.output_dir, found.images) == ("/home/me/run", "/big/data/out", "/home/me/i")
    assert (found.pairs, found.ijb) == (["/home/me/a.bin", "b.bin"], ["/big/data/IJBC"])
    assert (found.probes, found.distractors) == ("/home/me/p", "/big/data/d")
    assert parse_settings(["--model", "OWNER/NAME", "--output_dir", "a"]).model == "OWNER/NAME"
    with pytest.raises(UserError, match=r"^ijb is \$NOWHERE, .*variable NOWHERE") as caught:
        parse_settings([*options, "--ijb", "a", "$NOWHERE"])
    assert caught.value.shared


@pytest.mark.parametrize(
    ("name", "arguments", "settings"),
    [
        ("prepare_data", ["recordio", "~/ms1m", "$DATA/out"], {"source": "/home/me/ms1m", "output": "/big/data/out"}),
        ("prepare_data", ["lmdb", "a", "~/keys.txt", "b"], {"source": "a", "keys": "/home/me/keys.txt", "output": "b"}),
        ("prepare_data", ["webdataset", "OWNER/NAME/*.tar", "b"], {"source": "OWNER/NAME/*.tar", "output": "b"}),
        ("prepare_data", ["inspect", "~/faces"], {"name": "/home/me/faces"}),
        (
            "benchmark",
            ["loader", "--data", "$DATA/a", "--output", "~/r"],
            {"data": "/big/data/a", "output": "/home/me/r"},
        ),
    ],
)
def test_in_every_path_of_a_command(name, arguments, settings):
    command, found = read_command(script(name).parser(), arguments)
    assert command == arguments[0] and found | settings == found


def test_a_model_is_exported_from_a_home_folder(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere))
    with pytest.raises(UserError, match=f"{elsewhere}/run/results.json cannot be read"):
        script("export").main(["hub", "~/run", "out"])
    with pytest.raises(UserError, match="^weights is .*variable NOWHERE"):
        script("export").main(["from-insightface", "$NOWHERE/backbone.pth", "out"])


def test_files_of_the_project_are_found_from_any_folder(elsewhere):
    recipe = ROOT / "launch" / "recipes" / "quickstart.yaml"
    assert find_file("launch/recipes/quickstart.yaml") == str(recipe)
    config = parse_config(["--config", "launch/recipes/quickstart.yaml"])
    assert config.data.train == "generated:1000:32" and config.output_dir == "runs/quickstart"
    assert config.deepspeed in [str(ROOT / "ds_configs" / f"{name}.json") for name in ("bf16", "zero2")]
    assert find_file("nowhere.json") == "nowhere.json"


def test_a_ds_config_is_that_of_the_folder_then_that_of_the_recipe_then_that_of_the_project(elsewhere):
    recipe = elsewhere.parent / "recipes" / "run.yaml"
    places = [elsewhere, recipe.parent, ROOT]
    for folder in places[:2]:
        (folder / "ds_configs").mkdir(parents=True)
        (folder / "ds_configs" / "zero3.json").write_text("{}")
    recipe.write_text("deepspeed: ds_configs/zero3.json\n")
    for folder in places:
        found = parse_config(["--config", str(recipe)]).deepspeed
        assert os.path.samefile(found, folder / "ds_configs" / "zero3.json")
        if folder != ROOT:
            (folder / "ds_configs" / "zero3.json").unlink()
