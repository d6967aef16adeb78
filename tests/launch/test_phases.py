"""Phases: what is run, in which order, and from where it goes on."""

import json
import textwrap
from pathlib import Path

import pytest
import yaml

from ffc_ds.config.settings import parse_config
from ffc_ds.errors import UserError
from tests.scripts import script


@pytest.fixture
def phases(monkeypatch):
    module = script("phases")
    module.ran = []

    def run(command):
        config = parse_config(command[command.index(module.TRAIN) + 1 :])
        module.ran.append((command, config))
        module.ends.pop(0)(config)
        return module.code

    module.code = 0
    monkeypatch.setattr(module, "run", run)
    return module


def finished(config):
    Path(config.output_dir).mkdir(parents=True)
    Path(config.output_dir, "results.json").write_text(json.dumps({"preempted": False}))


def write(folder, **content):
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), **content}))
    return str(path)


THREE = [
    {"head.name": "partial_fc", "data": {"batch_size": 24, "shift": 1}, "train.steps": 5},
    {"head.name": "full_fc", "model.overrides": {"width": 0.5}},
    {"head.name": "metric", "head.weights": None},
]


def test_each_begins_with_the_one_before_and_a_stop_is_no_end(phases, tmp_path):
    path = write(tmp_path, config="launch/recipes/lfw.yaml", phases=THREE)
    phases.ends = [finished, lambda config: None]  # the second one is asked to stop
    assert phases.main([path, "--num_accelerators", "2"]) == 0
    first, second = (config for _, config in phases.ran)
    assert (first.head.name, first.train.steps, first.data.shift, first.head.weights) == ("partial_fc", 5, 1, None)
    assert first.data.crop == parse_config(["--config", "launch/recipes/lfw.yaml"]).data.crop
    assert (second.head.name, second.head.weights) == ("full_fc", str(tmp_path / "out" / "phase-1"))
    assert second.model.overrides == {"width": 0.5} and second.resume == "auto"
    command = phases.ran[0][0]
    assert command.index("--num_accelerators") < command.index(phases.TRAIN)
    phases.ran, phases.ends = [], [finished, finished]
    assert phases.main([path]) == 0
    assert [config.head.name for _, config in phases.ran] == ["full_fc", "metric"]
    assert phases.ran[1][1].head.weights is None


def test_the_example_in_its_help_is_understood(phases, tmp_path, capsys):
    assert phases.main(["--help"]) == 0
    example = capsys.readouterr().out.split("different:\n")[1].split("\n\nGiven")[0]
    (tmp_path / "phases.yaml").write_text(textwrap.dedent(example))
    configs = [parse_config(words) for words in phases.read_phases(tmp_path / "phases.yaml").values()]
    assert [config.head.name for config in configs] == ["partial_fc", "full_fc"]
    assert configs[1].head.weights == configs[0].output_dir == "runs/phases/phase-1"


def test_one_that_fails_ends_all(phases, tmp_path):
    phases.ends, phases.code = [lambda config: None], 2
    assert phases.main([write(tmp_path, phases=THREE)]) == 2 and len(phases.ran) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"phases": [{"head.name": "full_fc"}, {"head.margn": "am"}]}, "head.margn"),
        ({"phases": []}, "must have output_dir, phases"),
        ({"phases": ["full_fc"]}, "each a mapping"),
        ({"phases": [{}], "epochs": 3}, "must have output_dir, phases"),
        ({"phases": [{}], "output_dir": 3}, "output_dir must say where"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(phases, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        phases.main([write(tmp_path, **content)])
    assert not phases.ran
