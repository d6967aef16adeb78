"""Generated faces on disk: Arrow files of some people each, drawn on all cores, each there whole or not at all."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import simplejpeg
from datasets.arrow_writer import ArrowWriter

from ffc_ds.data.generated.renderer import render
from ffc_ds.data.importers.processes import process_pool, results
from ffc_ds.files import replaced
from ffc_ds.progress import progress

FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.Value("int64"), "name": datasets.Value("string")}
)
JPEG_QUALITY = 92
CHUNK = 512  # images in memory as pixels
BATCH_BYTES = 1 << 24  # of a record batch, of which each costs the processes that open the file 3 KB
FEWEST_PEOPLE, MOST_PARTS = 512, 256  # people of a part, at least, and parts, each of which keeps a file open
ALONE = 8  # parts that are drawn sooner than a pool of processes is there


@dataclass(frozen=True)
class Part:
    """Some people of a split and the file for them: their labels from `first` to `end`, the identity number of label 0,
    `counts`, which gives the numbers of images of some identities (int64 [n] -> int64 [n]), and how they are drawn."""

    place: Path
    split: str
    first: int
    end: int
    offset: int
    counts: Callable[[np.ndarray], np.ndarray]
    size: int
    seed: int

    @property
    def rows(self) -> int:
        return int(self.counts(np.arange(self.first, self.end) + self.offset).sum())


def bounds(people: int) -> Iterator[tuple[int, int]]:
    """The first label and the end of each part."""
    each = max(FEWEST_PEOPLE, -(-people // MOST_PARTS))
    return ((first, min(first + each, people)) for first in range(0, people, each))


def write_missing(parts: list[Part], what: str) -> None:
    """Write the parts whose files are not there, by several processes if there are many. What is interrupted is gone on
    with by the next call; several at once, of other processes, may write the same."""
    missing = [part for part in parts if not part.place.exists()]
    total, done = (sum(part.end - part.first for part in some) for some in (parts, missing))
    shown = os.environ.get("RANK", "0") == "0"
    with progress(desc=what, unit="people", total=total, initial=total - done, shown=shown) as bar:
        if len(missing) <= ALONE:
            for part in missing:
                bar.update(write(part))
            return
        with process_pool(None) as pool:
            jobs: list[Future] = [pool.submit(write, part) for part in missing]
            for people in results(jobs):
                bar.update(people)


def write(part: Part) -> int:
    """Write the file of a part, aside and renamed, unless it has come to be there. Returns the number of its people."""
    if not part.place.exists():
        with replaced(part.place) as aside, ArrowWriter(path=str(aside), features=FEATURES) as writer:
            for table in _batches(part):
                writer.write_table(table, len(table))
            writer.finalize()
    return part.end - part.first


def _batches(part: Part) -> Iterator[pa.Table]:
    pending, size = [], 0
    for table in _tables(part):
        pending.append(table)
        size += table.nbytes
        if size >= BATCH_BYTES:
            yield pa.concat_tables(pending)
            pending, size = [], 0
    if pending:
        yield pa.concat_tables(pending)


def _tables(part: Part) -> Iterator[pa.Table]:
    labels = np.arange(part.first, part.end)
    counts = part.counts(labels + part.offset)
    ends = np.cumsum(counts)
    for start in range(0, int(ends[-1]), CHUNK):
        row = np.arange(start, min(start + CHUNK, int(ends[-1])))
        person = np.searchsorted(ends, row, side="right")
        number, label = row - (ends - counts)[person], labels[person]
        pixels = render(label + part.offset, number, part.size, part.seed)
        jpeg = [simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY) for image in pixels]
        image = pa.StructArray.from_arrays(
            [pa.array(jpeg, pa.binary()), pa.nulls(len(jpeg), pa.string())], ["bytes", "path"]
        )
        yield pa.table({"image": image, "label": label, "name": [f"{part.split}-{each:08d}" for each in label]})
