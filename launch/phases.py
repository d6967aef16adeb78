"""Train in phases: runs one after another, each beginning with the net and the classes of the one before.

python launch/phases.py PHASES.yaml [options of deepspeed]

PHASES.yaml, where each phase has whatever settings it wants to be different:

    output_dir: runs/phases             # phase N is the run in phase-N there
    config: launch/recipes/lfw.yaml     # the settings that all phases share
    phases:
      - {head.name: partial_fc, train.epochs: 16}
      - {head.name: full_fc, train.epochs: 4, optim.lr: 0.01, optim.warmup: 0}

Given again it goes on where it was stopped. Learning rates follow the schedule of their own phase. A phase whose head
has nothing to take over says head.weights: null; one that has a config of its own reads it in place of the shared one.

Refused before anything runs: what is no setting or out of bounds; a phase that would begin with the classes of one
whose head keeps none, or that has another embedding size or number of sub-centers; a phase that is finished, and had
other settings than it has now. Whether the data or the net of the phase before serves shows when a phase begins.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from preemptible import main as run

from ffc_ds.config.comparison import changes, check_handing_on, flat
from ffc_ds.config.documents import read_yaml
from ffc_ds.config.settings import Config, parse_config
from ffc_ds.errors import UserError
from ffc_ds.launching import run_for_user
from ffc_ds.training.finished import is_finished, was_stopped

HANDED_ON = ("model.weights", "head.weights")
OURS = {"output_dir", "resume"}
TRAIN = str(Path(__file__).with_name("train.py"))
ASKED = -1  # to stop; no exit code


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments[:1] == ["--help"] else 2
    phases = read_phases(Path(arguments[0]))
    folders = [Path(config.output_dir) for config in understood(phases)]
    for number, (folder, settings) in enumerate(zip(folders, phases, strict=True), 1):
        print(f"phase {number} of {len(phases)}: {folder}", flush=True)
        if is_finished(folder):
            continue
        code = run([sys.executable, "-m", "deepspeed.launcher.runner", *arguments[1:], TRAIN, *settings], ASKED)
        if code == ASKED or (code == 0 and was_stopped(folder)):
            print(f"stopped in phase {number} of {len(phases)}; given again it goes on there", flush=True)
            return 0
        if code:
            return code
        if not is_finished(folder):
            raise UserError(f"phase {number} has ended, but {folder} has no results of it: look at what it said.")
    return 0


def read_phases(path: Path) -> list[list[str]]:
    """The command line of each phase. Raises UserError."""
    told = read_yaml(path)
    lists = isinstance(told, dict) and told.keys() <= {"output_dir", "config", "phases"} and told.get("phases")
    if not lists or not isinstance(lists, list) or not all(isinstance(each, dict) for each in lists):
        raise UserError(f"{path} must have output_dir, phases, each a mapping of settings, and perhaps config.")
    if not isinstance(told.get("output_dir"), str):
        raise UserError(f"{path}: output_dir must say where the phases are to be written.")
    phases, before = [], None
    for number, own in enumerate(lists, 1):
        if twice := sorted(OURS & own.keys()):
            raise UserError(f"phase {number} has {twice[0]}, which is not its own: it is the run in phase-{number}.")
        folder = str(Path(told["output_dir"], f"phase-{number}"))
        handed_on = {} if before is None else dict.fromkeys(HANDED_ON, before)
        # config comes first, also one of the phase's own, so that all else overrules it
        settings = {"config": told.get("config"), "output_dir": folder, "resume": "auto"} | handed_on | own
        phases.append([word for setting in settings.items() if setting != ("config", None) for word in words(*setting)])
        before = folder
    return phases


def words(name: str, value) -> tuple[str, str]:
    return f"--{name}", value if isinstance(value, str) else json.dumps(value)


def understood(phases: list[list[str]]) -> list[Config]:
    """The settings of phases by their command lines. Raises UserError for what would be refused later, after days."""
    configs: dict[str, Config] = {}
    for number, settings in enumerate(phases, 1):
        try:
            config = parse_config(settings)
            check(config, configs)
        except UserError as error:
            raise UserError(f"phase {number}: {error}") from None
        configs[config.output_dir] = config
    return list(configs.values())


def check(config: Config, earlier: dict[str, Config]) -> None:
    """Raise UserError if a phase cannot begin with the classes of an `earlier` one, by output folder, or is finished
    and had other settings."""
    if (place := config.head.weights) in earlier:
        check_handing_on(place, flat(asdict(earlier[place])), config)
    folder = Path(config.output_dir)
    if is_finished(folder):
        had = asdict(parse_config(["--config", str(folder / "config.yaml")]))
        if changed := changes(had, config, apart_from=(*OURS, "deepspeed")):
            raise UserError(
                f"{folder} is finished, with other settings than it has now: {', '.join(changed)}. "
                "Change those of phases that are still to come, or choose another output_dir."
            )


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]), "given again it goes on where it was stopped")
