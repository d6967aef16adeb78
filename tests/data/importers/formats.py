"""Small images, and what an import made of them."""

import io
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from ffc_ds.data.importers.plan import Broken, Plan, Record
from ffc_ds.data.importers.shards import write_shards


@cache
def pictures(count: int) -> tuple[bytes, ...]:
    """Distinct encoded images of several kinds and sizes."""
    rng = np.random.default_rng(0)
    return tuple(_encode(rng.integers(256, size=(20 + i % 5, 20, 3), dtype=np.uint8), i % 3) for i in range(count))


def _encode(pixels, kind) -> bytes:
    if kind == 0:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, ("PNG", "WEBP")[kind - 1])
    return file.getvalue()


IMAGES = pictures(12)
ROWS = [(image, i // 3, f"name {i // 3}") for i, image in enumerate(IMAGES)]


def plan_of(size=5, about=None, **settings) -> Plan:
    """A plan that gives ROWS, `size` of them a job."""
    jobs = [partial(read, start, min(start + size, 12), **settings) for start in range(0, 12, size)]
    return Plan(about or {"source": "test"}, jobs)


def read(start, stop, broken=(), journal=None, pause=0) -> Iterator[Record | Broken]:
    """A job; `journal` is a folder where it leaves a file when it runs."""
    if journal is not None:
        Path(journal, f"{start}-{time.monotonic_ns()}").touch()
    for i in range(start, stop):
        time.sleep(pause)
        yield Broken(f"key {i}", "no reason") if i in broken else Record(f"key {i}", *ROWS[i])


def imported(plan, folder, **settings) -> list[tuple[bytes, int, str]]:
    """Carry a plan out in one worker: (image, label, identity) of every row, in order."""
    write_shards(plan, str(folder), **{"workers": 1} | settings)
    return rows(folder)


def rows(folder) -> list[tuple[bytes, int, str]]:
    tables = [pq.read_table(file).to_pylist() for file in sorted(Path(folder).glob("*.parquet"))]
    return [(row["image"]["bytes"], row["label"], row["identity"]) for table in tables for row in table]


def collect(plan) -> tuple[list, list]:
    """What the jobs of a plan read, without writing anything: records and broken ones."""
    found = [each for job in plan.jobs for each in job()]
    return [r for r in found if isinstance(r, Record)], [r for r in found if isinstance(r, Broken)]
