"""Train.

deepspeed launch/train.py --config launch/recipes/quickstart.yaml [--section.key value ...]
deepspeed --num_accelerators 2 launch/train.py --config launch/recipes/lfw.yaml --data.train PATH --eval.bin PATH.bin
"""

import sys

from ffc_ds.config.settings import parse_config
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> int:
    config = parse_config(arguments)

    from ffc_ds.training.trainer import Trainer  # takes seconds, and a misspelt setting should not

    return Trainer(config).run()["exit_code"]


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]), "with --resume auto it goes on from the last checkpoint, if there is one")
