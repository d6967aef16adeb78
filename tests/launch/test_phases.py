"""Phases: what is run, in which order, and from where it goes on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from ffc_ds.config.settings import parse_config, save_config
from ffc_ds.errors import UserError
from tests.launched import ROOT
from tests.scripts import script


@pytest.fixture
def phases(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "launch")  # as Python does for a script there
    module = script("phases")
    module.ran, module.code = [], 0

    def run(command, asked):
        config = parse_config(command[command.index(module.TRAIN) + 1 :])
        module.ran.append((command, config))
        module.ends.pop(0)(config)
        return module.code

    monkeypatch.setattr(module, "run", run)
    return module


def results(config, preempted):
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(replace(config, resume=None), folder / "config.yaml")
    (folder / "results.json").write_text(json.dumps({"preempted": preempted}))


def finished(config):
    results(config, preempted=False)


def stopped(config):
    results(config, preempted=True)


def nothing(config):
    pass


def write(folder, **content):
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), **content}))
    return str(path)


THREE = [
    {"head.name": "partial_fc", "data": {"batch_size": 24, "shift": 1}, "train.steps": 5},
    {"head.name": "full_fc", "model.overrides": {"width": 0.5}},
    {"head.name": "metric", "head.weights": None},
]


def test_each_begins_with_the_one_before_and_a_stop_is_no_end(phases, tmp_path, capsys):
    path = write(tmp_path, config="launch/recipes/lfw.yaml", phases=THREE)
    phases.ends = [finished, stopped]
    assert phases.main([path, "--num_accelerators", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped in phase 2 of 3")
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


def test_a_phase_is_where_its_settings_say_whatever_they_come_from(phases, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    own, common = tmp_path / "own.yaml", tmp_path / "common.yaml"
    common.write_text("head:\n  scale: 16\n")
    own.write_text(f"output_dir: {tmp_path}/elsewhere\nresume: latest\nhead:\n  scale: 12\n  weights: other\n")
    phases.ends = [finished, finished, finished]
    three = [{}, {"head.name": "full_fc", "config": str(own)}, {"config": None}]
    assert phases.main([write(tmp_path, output_dir="~/ph", config=str(common), phases=three)]) == 0
    folders = [str(tmp_path / "ph" / f"phase-{number}") for number in (1, 2, 3)]
    found = [config for _, config in phases.ran]
    assert [config.output_dir for config in found] == folders
    assert [config.head.weights for config in found] == [None, *folders[:2]]
    assert [config.head.scale for config in found] == [16, 12, None] and found[1].resume == "auto"


def test_the_example_in_its_help_is_understood(phases, tmp_path, capsys):
    assert phases.main(["--help"]) == 0
    example = capsys.readouterr().out.split("different:\n")[1].split("\n\nGiven")[0]
    (tmp_path / "phases.yaml").write_text(textwrap.dedent(example))
    configs = phases.understood(phases.read_phases(tmp_path / "phases.yaml"))
    assert [config.head.name for config in configs] == ["partial_fc", "full_fc"]
    assert configs[1].head.weights == configs[0].output_dir == "runs/phases/phase-1"


def test_one_that_fails_ends_all(phases, tmp_path):
    phases.ends, phases.code = [nothing], 2
    assert phases.main([write(tmp_path, phases=THREE)]) == 2 and len(phases.ran) == 1


def test_one_that_ends_without_results_is_an_error(phases, tmp_path):
    phases.ends = [nothing]
    with pytest.raises(UserError, match="phase 1 has ended, but .*phase-1 has no results"):
        phases.main([write(tmp_path, phases=THREE)])


def test_one_that_is_asked_to_stop_while_it_finishes_is_the_last(phases, tmp_path):
    phases.ends, phases.code = [finished], phases.ASKED
    assert phases.main([write(tmp_path, phases=THREE)]) == 0 and len(phases.ran) == 1


def test_one_that_is_finished_is_not_passed_over_with_other_settings(phases, tmp_path):
    phases.ends = [finished, nothing]
    with pytest.raises(UserError, match="phase 2 has ended"):
        phases.main([write(tmp_path, phases=THREE)])
    changed = [THREE[0] | {"train.steps": 6, "data.train": "others"}, *THREE[1:]]
    with pytest.raises(UserError, match="phase 1: .* data.train None -> others, train.steps 5 -> 6"):
        phases.main([write(tmp_path, phases=changed)])
    phases.ran, phases.ends = [], [finished, finished]
    assert phases.main([write(tmp_path, phases=[THREE[0], THREE[1] | {"train.steps": 7}, THREE[2]])]) == 0
    assert [config.train.steps for _, config in phases.ran] == [7, None]
    (tmp_path / "out" / "phase-1" / "config.yaml").unlink()
    with pytest.raises(UserError, match="phase 1: .*config.yaml cannot be read"):
        phases.main([write(tmp_path, phases=THREE)])


FULL = {"head.name": "full_fc"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"phases": [FULL, {"head.margn": "am"}]}, "phase 2: .*head.margn"),
        ({"phases": []}, "must have output_dir, phases"),
        ({"phases": ["full_fc"]}, "each a mapping"),
        ({"phases": [{}], "epochs": 3}, "must have output_dir, phases"),
        ({"phases": [{}], "output_dir": 3}, "output_dir must say where"),
        ({"phases": [{}, {"output_dir": "elsewhere"}]}, "phase 2 has output_dir"),
        ({"phases": [{"resume": "latest"}]}, "phase 1 has resume"),
        ({"phases": [{"head.name": "metric"}, FULL]}, "phase 2: .*phase-1 is of a run with head.name metric"),
        ({"phases": [FULL, {"head.name": "ffc", "head.pool": "lru"}]}, "phase 2: .*head.pool lru holds the latest"),
        ({"phases": [FULL, FULL, FULL | {"model.embedding_size": 64}]}, "phase 3: .*is 512 in .*phase-2 and 64 here"),
        ({"phases": [FULL, FULL | {"head.sub_centers": 3}]}, "phase 2: .*sub_centers is 1 in .*phase-1 and 3 here"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(phases, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        phases.main([write(tmp_path, **content)])
    assert not phases.ran


LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "rank.py", "--local_rank=0", sys.argv[sys.argv.index("--output_dir") + 1]]))
"""
RANK = """
import json, os, pathlib, signal, sys, time
def saved(number, _):
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"preempted": True}))
    os._exit(0)
signal.signal(signal.SIGTERM, saved)
print("ready", os.getpid(), os.getppid(), flush=True)
time.sleep(60)
"""


def test_a_signal_reaches_the_ranks_and_nobody_is_left(tmp_path):
    package = tmp_path / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    for name, text in {"../__init__": "", "__init__": "", "runner": LAUNCHER}.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "rank.py").write_text(RANK)
    line = [sys.executable, str(ROOT / "launch" / "phases.py"), write(tmp_path, phases=THREE)]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("phase 1 of 3")
    _, *started = process.stdout.readline().split()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said.startswith("stopped in phase 1 of 3")
    assert len(started) == 2 and not any(map(psutil.pid_exists, map(int, started)))
