"""Train in phases: runs one after another, each beginning with the net and the classes of the one before.

python launch/phases.py PHASES.yaml [options of deepspeed]

PHASES.yaml, where each phase has whatever settings it wants to be different:

    output_dir: runs/phases             # phase N is the run in phase-N there
    config: launch/recipes/lfw.yaml     # the settings that all phases share
    phases:
      - {head.name: partial_fc, train.epochs: 16}
      - {head.name: full_fc, train.epochs: 4, optim.lr: 0.01, optim.warmup: 0}

Given again it goes on where it was stopped. Learning rates follow the schedule of their own phase. A phase whose head
has nothing to take over says head.weights: null.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ffc_ds.config.documents import read_yaml
from ffc_ds.config.settings import parse_config
from ffc_ds.errors import UserError
from ffc_ds.launching import run_for_user
from ffc_ds.training.finished import is_finished

HANDED_ON = ("model.weights", "head.weights")
TRAIN = str(Path(__file__).with_name("train.py"))


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments[:1] == ["--help"] else 2
    phases = read_phases(Path(arguments[0]))
    for settings in phases.values():  # a misspelt one is found before the first phase, not after days
        parse_config(settings)
    for number, (folder, settings) in enumerate(phases.items(), 1):
        print(f"phase {number} of {len(phases)}: {folder}", flush=True)
        if is_finished(folder):
            continue
        code = run([sys.executable, "-m", "deepspeed.launcher.runner", *arguments[1:], TRAIN, *settings])
        if code or not is_finished(folder):  # it failed, or was asked to stop
            return code
    return 0


def read_phases(path: Path) -> dict[Path, list[str]]:
    """The output folder and the command line of each phase. Raises UserError."""
    told = read_yaml(path)
    lists = isinstance(told, dict) and told.keys() <= {"output_dir", "config", "phases"} and told.get("phases")
    if not lists or not isinstance(lists, list) or not all(isinstance(each, dict) for each in lists):
        raise UserError(f"{path} must have output_dir, phases, each a mapping of settings, and perhaps config.")
    if not isinstance(told.get("output_dir"), str):
        raise UserError(f"{path}: output_dir must say where the phases are to be written.")
    common, phases, before = {"config": told["config"]} if told.get("config") else {}, {}, None
    for number, own in enumerate(lists, 1):
        folder = Path(told["output_dir"], f"phase-{number}")
        handed_on = {} if before is None else dict.fromkeys(HANDED_ON, str(before))
        settings = common | {"output_dir": str(folder), "resume": "auto"} | handed_on | own
        phases[folder] = [word for name, value in settings.items() for word in (f"--{name}", as_word(value))]
        before = folder
    return phases


def as_word(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run(command: list[str]) -> int:
    """Its exit code. Ctrl-C is for the ranks, which it reaches as well: they save, and end."""
    launcher = subprocess.Popen(command)
    while True:
        with suppress(KeyboardInterrupt):
            return launcher.wait()


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]), "given again it goes on where it was stopped")
