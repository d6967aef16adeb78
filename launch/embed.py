"""Embed a set of images into parquet files, alone or under a launcher; the same command goes on after a stop.

python launch/embed.py --data FACES --model runs/lfw --output_dir embeddings
deepspeed launch/embed.py --data OWNER/NAME --split test --model OWNER/MODEL --output_dir embeddings
python launch/embed.py --data data/ms1m --model buffalo_l --dtype float32 --output_dir embeddings
"""

import sys

from ffc_ds.embedding_set.settings import parse_settings
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> None:
    config = parse_settings(arguments)

    from ffc_ds.embedding_set.run import embed_set  # takes seconds, and a misspelt setting should not

    embed_set(config)


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]), "the same command goes on")
