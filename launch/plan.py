"""Plan a run: what fits which GPUs, what it sends, how fast it may be, and what to change.

python launch/plan.py --identities 100e6 --images 1e9 --gpus 64 --gpu-memory 80 --backbone iresnet100 --head ffc
python launch/plan.py --identities 1e6 --images 1e8 --gpus 8 --matrix-tflops 400 --bandwidth 200
python launch/plan.py --config launch/recipes/ms1mv3_r50.yaml --head.name ffc --identities 93431 --images 5.2e6 --gpus 8
"""

import sys

from ffc_ds.launching import run_for_user
from ffc_ds.planning.settings import parse_settings


def main(arguments: list[str]) -> None:
    settings = parse_settings(arguments)

    from ffc_ds.planning.table import report  # takes seconds, and a misspelt setting should not

    print(report(settings))


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]))
