"""Evaluate a backbone by the field's protocols, alone or under a launcher.

python launch/evaluate.py --model runs/lfw --output_dir results --pairs lfw.bin agedb_30.bin lfw/pairs.txt
python launch/evaluate.py --model OWNER/NAME --output_dir results --ijb IJBB IJBC
python launch/evaluate.py --model buffalo_l --output_dir results --pairs lfw.bin
deepspeed launch/evaluate.py --model runs/lfw --output_dir results --probes facescrub --distractors megaface
"""

import sys

from ffc_ds.evaluation.settings import parse_settings
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> None:
    config = parse_settings(arguments)

    # These take seconds, and a misspelt setting should not.
    from ffc_ds.distributed import rank
    from ffc_ds.evaluation.results import table
    from ffc_ds.evaluation.run import evaluate

    results = evaluate(config)
    if rank() == 0:
        print(f"\n{table(results)}\nfigures and numbers: {config.output_dir}")


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]))
