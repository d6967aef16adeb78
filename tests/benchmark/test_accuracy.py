"""A comparison of tiny trainings: its tables, what is kept of it, and recipes of another form."""

import json
import subprocess
import threading
import time

import pytest
import yaml

from ffc_ds.benchmark import accuracy
from ffc_ds.benchmark.accuracy import read_recipe, run_accuracy
from ffc_ds.benchmark.training_cell import Cell
from ffc_ds.errors import UserError
from tests.launched import ROOT, TINY, train

FFC = {"head.name": "ffc", "head.pool_size": 0.5}
RECIPE = {
    "every": {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)},
    "experiments": {
        "Systems": {"seeds": 1, "cells": {"pool": FFC}},
        "Pools": {"seeds": 2, "cells": {"half": FFC}},
    },
}


RECIPES = {"cleaning": 15, "accuracy_generated": 15, "accuracy_lfw": 111, "gap": 32, "growing_lfw": 25}
RECIPES |= {"lfw_long": 37, "race": 6}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def run_warm_instead(line, stdout, stderr):
    """The same run without the launcher, whose processes take seconds; test_race.py goes through it."""
    done = train(1, *line[line.index(str(ROOT / "launch" / "train.py")) + 1 :])
    stdout.write(done.stdout + done.stderr)
    return done


def test_a_comparison_runs_each_cell_once_and_keeps_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_warm_instead)
    folders = {"output": str(tmp_path / "results"), "work": str(tmp_path / "work")}
    run_accuracy(str(recipe), ("train.steps=3",), 1, **folders)
    cells = sorted((tmp_path / "results" / "tiny").glob("*.json"))
    assert len(cells) == 2  # seed 0, which both tables show, was run once
    found = [json.loads(cell.read_text()) for cell in cells]
    assert all(each["steps"] == 3 and 0 < each["trained"]["accuracy"] <= 1 for each in found)
    text = (tmp_path / "results" / "tiny.md").read_text()
    assert text.count(" identities, ") == 1  # the same data for both tables
    for label in ("## Systems", "| pool |", "## Pools", "| half |", " ± "):
        assert label in text
    assert (tmp_path / "results" / "tiny.png").stat().st_size > 1000
    assert "curves" not in text

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a cell that is there was run again"))
    cells[0].write_text(json.dumps(found[0] | {"curve": [[0, 0.0, 0.5], [30, 1.0, 0.6], [60, 2.0, 0.7]]}))
    run_accuracy(str(recipe), ("train.steps=3",), 1, **folders)
    assert "(tiny_curves.png)" in (tmp_path / "results" / "tiny.md").read_text()
    assert (tmp_path / "results" / "tiny_curves.png").stat().st_size > 1000
    with pytest.raises(UserError, match="cannot be compared with this one: ranks is 1 there and 2 here"):
        run_accuracy(str(recipe), ("train.steps=3",), 2, **folders)
    cells[0].unlink()
    for key in ("images", "steps"):
        monkeypatch.setattr(accuracy, "train_cell", lambda *_, key=key: found[0] | {key: 7})
        with pytest.raises(UserError, match=f"cannot be compared .* {key} is .* there and 7 here"):
            run_accuracy(str(recipe), ("train.steps=3",), 1, **folders)
        assert not cells[0].exists()


def test_a_run_that_fails_says_why(recipe, tmp_path):
    with pytest.raises(UserError, match="There is no setting head.pool_sise"):
        run_accuracy(str(recipe), ("head.pool_sise=1",), 1, 1, str(tmp_path / "results"), str(tmp_path / "work"))
    assert not list((tmp_path / "results" / "tiny").glob("*.json"))


@pytest.mark.parametrize("text", ["[1, 2]", "every: {}", "every: {}\nexperiments: {a: {cells: {}}}", "every:"])
def test_a_recipe_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is no recipe of a comparison"):
        read_recipe(path)


def test_a_recipe_that_is_no_yaml_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("every: {: :")
    with pytest.raises(UserError, match=r"bad.yaml is not YAML that can be used: .* \(line 1"):
        read_recipe(path)


def test_every_recipe_of_the_project_can_be_read():
    for name, number in RECIPES.items():
        _, experiments = read_recipe(ROOT / "launch" / "comparisons" / f"{name}.yaml")
        assert len({cell for each in experiments for line in each.lines.values() for cell in line}) == number


def test_of_runs_side_by_side_one_that_fails_costs_no_other(tmp_path, monkeypatch):
    cells, begun, both = [Cell("{}", seed) for seed in range(100)], [], threading.Barrier(2)

    def train_cell(cell, *_):
        begun.append(cell)
        if cell.seed < 2:
            both.wait(60)
        if cell.seed == 0:
            raise UserError("it fails")
        time.sleep(0.1)
        return {"seed": cell.seed}

    monkeypatch.setattr(accuracy, "train_cell", train_cell)
    with pytest.raises(UserError, match="it fails"):
        accuracy.train_cells(cells, {}, tmp_path, tmp_path / "work", 1, (), lambda: None, 2)
    assert json.loads((tmp_path / f"{cells[1].name}.json").read_text())["seed"] == 1
    assert len(begun) < len(cells)
