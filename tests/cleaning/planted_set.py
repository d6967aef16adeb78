"""A copy of a set in parquet files, of numbered identities, with the errors of `quality.plant` among its labels.

PYTHONPATH=. python tests/cleaning/planted_set.py data/faces out/planted
"""

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cleaning.quality import plant


def write_planted(source: Path, output: Path) -> None:
    """The split train in one file; other splits as they are."""
    table = pq.read_table(sorted(source.glob("train-*.parquet")))
    place = table.column_names.index("label")
    labels, _, _ = plant(table["label"].to_numpy())
    output.mkdir(parents=True)
    table = table.set_column(place, table.schema.field(place), pa.array(labels))
    pq.write_table(table, output / "train-00000-of-00001.parquet", row_group_size=1000)
    for path in source.glob("test-*.parquet"):
        shutil.copy(path, output)


if __name__ == "__main__":
    write_planted(Path(sys.argv[1]), Path(sys.argv[2]))
