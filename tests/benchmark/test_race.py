"""A race of two tiny trainings, one of them interrupted, and the arithmetic of its table."""

import json
import subprocess

import pytest
import yaml

from ffc_ds.benchmark.accuracy import read_recipe
from ffc_ds.benchmark.race import run_race, time_to, write_race
from tests.launched import TINY, metrics, train_tiny

OWN = {"eval.every": 2, "train.checkpoint_every": 2}
RECIPE = {
    "every": {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)} | OWN,
    "experiments": {"Two heads": {"seeds": 1, "cells": {"all": {"head.name": "full_fc"}}}},
}


def test_the_time_to_a_level_lies_between_verifications():
    curve = [[0, 0.0, 0.5], [100, 10.0, 0.7], [200, 30.0, 0.6], [300, 50.0, 0.9]]
    assert time_to(curve, 0.6) == pytest.approx(5)
    assert time_to(curve, 0.8) == pytest.approx(30 + 20 * 2 / 3)
    assert time_to(curve, 0.4) == 0
    assert time_to(curve, 0.95) is None


def test_a_race_is_drawn_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    recipe, work = tmp_path / "tiny.yaml", tmp_path / "work"
    folders = {"output": str(tmp_path / "results"), "work": str(work)}
    recipe.write_text(yaml.safe_dump(RECIPE))
    _, (experiment,) = read_recipe(recipe)
    ((cell,),) = experiment.lines.values()
    folder = work / "tiny" / cell.name
    settings = [part for key, value in OWN.items() for part in (f"--{key}", str(value))]
    train_tiny(1, folder, *settings, "--head.name", "full_fc", "--train.steps", "4")
    (folder / "results.json").unlink()  # as if it had been stopped after its second checkpoint
    before = (folder / "metrics.jsonl").read_text()
    run_race(str(recipe), ("train.steps=6",), 1, **folders)
    assert (folder / "metrics.jsonl").read_text().startswith(before), "it began anew"
    (path,) = (tmp_path / "results" / "tiny").glob("*.json")
    found = json.loads(path.read_text())
    images, seconds, accuracy = zip(*found["curve"], strict=True)
    assert images == pytest.approx((0, 48, 96, 144))
    assert seconds[0] == 0 and list(seconds) == sorted(seconds) and seconds[-1] > 0
    assert list(accuracy) == [line["accuracy"] for line in metrics(folder) if "accuracy" in line]
    assert "| all |" in (tmp_path / "results" / "tiny.md").read_text()
    assert (tmp_path / "results" / "tiny.png").stat().st_size > 1000

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a head that is there was run again"))
    run_race(str(recipe), ("train.steps=6",), 1, **folders)


def test_the_table_holds_each_head_against_the_first(tmp_path):
    versions = {"torch": "2"}
    shared = {
        "identities": 9,
        "images": 50,
        "steps": 30,
        "ranks": 1,
        "memory_gib": 1.5,
        "command": "x",
        "versions": versions,
        "machine": "a machine",
    }
    slow = {"curve": [[0, 0.0, 0.5], [90, 60.0, 0.9]], "images_per_second": 10, "trained": {"accuracy": 0.9}}
    fast = {"curve": [[0, 0.0, 0.5], [90, 15.0, 0.9]], "images_per_second": 40, "trained": {"accuracy": 0.9}}
    weak = {"curve": [[0, 0.0, 0.5], [90, 15.0, 0.6]], "images_per_second": 40, "trained": {"accuracy": 0.6}}
    found = {"slow": slow | shared, "fast": fast | shared, "weak": weak | shared}
    write_race("made_up", "A race", found, tmp_path)
    text = (tmp_path / "made_up.md").read_text()
    assert "| slow | 90.00 | 10 | 1.0 | 1.0 | 1.00 | 1.50 |" in text
    assert "| fast | 90.00 | 40 | 0.2 | 0.2 | 4.00 | 1.50 |" in text
    assert "| weak | 60.00 | 40 | 0.2 | never |  | 1.50 |" in text
