"""Find wrong labels, split people, repeated images and people of a benchmark by embeddings, alone or under a launcher.

python launch/clean.py --embeddings out/embeddings --output_dir out/proposals
deepspeed launch/clean.py --embeddings out/embeddings --against out/lfw --data data/faces --output_dir out/proposals
python launch/prepare_data.py apply data/faces out/proposals/proposals.parquet data/cleaned
"""

import sys

from ffc_ds.cleaning.settings import parse_settings
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> None:
    config = parse_settings(arguments)

    from ffc_ds.cleaning.run import clean  # takes seconds, and a misspelt setting should not

    clean(config)


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]))
