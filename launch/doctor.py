"""Examine machines, data and settings before a run is started: a minute or less, with the settings of train.py.

python launch/doctor.py --config launch/recipes/lfw.yaml --data.train PATH
deepspeed --num_accelerators 2 launch/doctor.py --config launch/recipes/lfw.yaml --data.train PATH
"""

import sys

from ffc_ds.config.settings import parse_config
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> None:
    config = parse_config(arguments)

    # These take seconds, and a misspelt setting should not.
    from ffc_ds.distributed import rank
    from ffc_ds.doctor.examination import examine
    from ffc_ds.doctor.finding import table
    from ffc_ds.errors import shared
    from ffc_ds.training.process_group import init_distributed

    findings = examine(config, init_distributed())
    if rank() == 0:
        print(f"\n{table(findings)}", flush=True)
    if problems := [name for name, finding in findings.items() if finding.state == "problem"]:
        raise shared(f"the run would not go well: see {', '.join(problems)} above")


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]))
