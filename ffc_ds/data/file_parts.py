"""Files that are parts of one, and say of how many, as train-00000-of-00003.parquet does."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PART = re.compile(r"(.*)-\d+-of-(\d+)(?:-[0-9a-f]+)?\.\w+", re.DOTALL)  # the hub's older files have a hash there


def lacking(paths: Iterable[str | Path]) -> str | None:
    """What is there of a set of files that is not whole, as "2 files of 3"; None where none is lacking."""
    announced = defaultdict(list)
    for path in paths:
        if found := PART.fullmatch(str(path)):
            announced[found[1]].append(int(found[2]))
    for counts in announced.values():
        if set(counts) != {len(counts)}:
            return f"{len(counts)} files of {max(counts)}"
    return None
