"""How well `launch/clean.py` finds errors that are planted in the embeddings of a set whose names are right.

PYTHONPATH=. python tests/cleaning/quality.py out/embeddings out/quality [settings of clean.py, such as --belongs 0.4]
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ffc_ds.cleaning.run import clean
from ffc_ds.cleaning.settings import parse_settings

SHARE = 0.05


def plant(true: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """Errors for images whose people are `true` (int64 [n]): every other image of SHARE of the people who have four at
    least gets a new name, then SHARE of all images the name of another person, each as likely.

    Returns the names, which images are wrong, and whose name each new one is.
    """
    rng, name = np.random.default_rng(seed), true.copy()
    people, counts = np.unique(true, return_counts=True)
    split = rng.choice(people[counts >= 4], round(SHARE * len(people)), replace=False)
    for new, person in enumerate(split, people[-1] + 1):
        name[np.flatnonzero(true == person)[::2]] = new
    wrong = rng.choice(len(true), round(SHARE * len(true)), replace=False)
    for image in wrong:
        name[image] = rng.choice(people[people != true[image]])
    return name, wrong, dict(enumerate(split.tolist(), int(people[-1]) + 1))


def measure(embeddings: Path, output: Path, settings: list[str]) -> dict[str, float]:
    """Plant errors in a copy of a folder of embeddings with names that are numbers, clean it, and count.

    A wrong label is found if the image is proposed as mislabelled, whoever's it is said to be. A proposed merge is
    right if both names are of one person, and a split found if such a merge is among the proposals.
    """
    table = pq.read_table(sorted(embeddings.glob("*.parquet")))
    true = table["name"].to_numpy()
    name, wrong, person = plant(true)
    (output / "planted").mkdir(parents=True)
    table = table.set_column(table.column_names.index("name"), "name", pa.array(name))
    pq.write_table(table, output / "planted" / "train-00000-of-00001.parquet")
    paths = "--embeddings", output / "planted", "--output_dir", output / "proposals"
    clean(parse_settings([*map(str, paths), *settings]))

    image = {row: place for place, row in enumerate(table["row"].to_pylist())}
    found = pq.read_table(output / "proposals" / "proposals.parquet").to_pylist()
    moved = {image[each["row"]]: int(each["other_identity"]) for each in found if each["kind"] == "mislabelled"}
    merges = [[int(each[side]) for side in ("identity", "other_identity")] for each in found if each["kind"] == "merge"]
    right = {frozenset(pair) for pair in merges if len({person.get(each, each) for each in pair}) == 1}
    hits = moved.keys() & set(wrong.tolist())
    right_person = [each for each in hits if person.get(moved[each], moved[each]) == true[each]]
    return {
        "wrong labels": len(wrong),
        "of them found": len(hits) / len(wrong),
        "precision": len(hits) / max(len(moved), 1),
        "given to the right person": len(right_person) / max(len(hits), 1),
        "splits": len(person),
        "of these found": len(right) / len(person),
        "precision of merges": len(right) / max(len(merges), 1),
    }


if __name__ == "__main__":
    for what, value in measure(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]).items():
        print(f"{what:<36} {value if isinstance(value, int) else f'{value:.1%}'}")
