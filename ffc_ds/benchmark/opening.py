"""What opening a dataset costs: memory over the number of images, and the first opening of parquet files."""

import json
import multiprocessing
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse.typing import PositiveInt

from ffc_ds.benchmark.pages import cores, how_it_was_made, markdown_table, this_command, this_machine
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import index_of
from ffc_ds.data.opening import load_faces
from ffc_ds.data.sampler import Sampler
from ffc_ds.errors import UserError

ABOUT = """**Memory.** Labels alone (image columns without bytes), {per_identity} images an identity in random order:
the first process builds the index; a second one, as every other rank and later start, opens it and plans {steps} steps
of {batch} images. Counted is memory that belongs to the process alone: memory-mapped files are the system's cache,
which all processes share."""
FIRST = """**First opening.** {records:,} records of {size:,} random bytes in {files} parquet files, {gib:.2f} GiB, in
the system's cache. `datasets` converts all columns, ffc_ds images and labels; both leave a copy as large as the
files."""
PER_IDENTITY, STEPS, BATCH = 20, 100, 1024
RECORD_BYTES, FILES = 6000, 8
PART = 1 << 22


def run_opening(
    images: tuple[float, ...] = (1e6, 1e7, 1e8), records: PositiveInt = 200_000, output: str = "docs/results"
) -> None:
    """Measure what opening a dataset takes: memory for its labels, time for parquet files.

    Writes OUTPUT/opening.md and opening.json.

    Args:
        images: Numbers of images whose labels are indexed; each takes 40 bytes of temporary disk.
        records: Records of the parquet files.
        output: Folder of the results.
    """
    from ffc_ds.training.report import versions  # imports DeepSpeed

    found = {"memory": {str(int(count)): measure_memory(int(count)) for count in images}, "first": time_first(records)}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opening.json").write_text(json.dumps(found, indent=1))
    about = ABOUT.format(per_identity=PER_IDENTITY, steps=STEPS, batch=BATCH)
    size = records * RECORD_BYTES / 2**30
    first = FIRST.format(records=records, size=RECORD_BYTES, files=FILES, gib=size)
    made = how_it_was_made([this_command()], versions(), this_machine("cpu"))
    memory, speed = _tables(found)
    (folder / "opening.md").write_text("\n\n".join(["# Opening a dataset", about, memory, first, speed, made]) + "\n")


def measure_memory(images: int) -> dict[str, float]:
    """MiB at most in the process that builds the index and in one that opens it, and the seconds of both."""
    with tempfile.TemporaryDirectory() as folder:
        _write_labels(Path(folder) / "data.arrow", images)
        build, opened = _in_child(_open_and_plan, folder), _in_child(_open_and_plan, folder)
    return dict(zip(("build_mib", "build_s", "open_mib", "open_s"), build + opened, strict=True))


def _write_labels(path: Path, images: int) -> None:
    random = np.random.default_rng(0)
    schema = datasets.Features(image=datasets.Image(), label=datasets.Value("int64")).arrow_schema
    with pa.ipc.new_stream(path, schema) as writer:
        for start in range(0, images, PART):
            count = min(PART, images - start)
            labels = pa.array(random.integers(0, max(1, images // PER_IDENTITY), count))
            writer.write_batch(pa.record_batch([pa.nulls(count, schema.field("image").type), labels], schema=schema))


def _open_and_plan(folder: str) -> None:
    faces = Faces(datasets.Dataset.from_file(f"{folder}/data.arrow"), "labels", "image", "label", "labels")
    sampler = Sampler(index_of(faces, folder), BATCH)
    for step in range(STEPS):
        sampler.plan(step)


def _in_child(action, *arguments) -> tuple[float, float]:
    """MiB beyond what the process had before, at most, and seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_watched, args=(theirs, action, arguments))
    child.start()
    theirs.close()  # or nobody would notice that the child is gone
    found = None
    with suppress(EOFError):
        found = ours.recv()
    child.join()
    if found is None:
        raise UserError(f"the process that is measured ended with code {child.exitcode} and no result")
    return found


def _watched(connection, action, arguments) -> None:
    before, most, done = _own_bytes(), [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            most[0] = max(most[0], _own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = perf_counter()
    action(*arguments)
    seconds = perf_counter() - start
    done.set()
    watcher.join()
    connection.send(((max(most[0], _own_bytes()) - before) / 2**20, seconds))


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def time_first(records: int) -> dict[str, float]:
    """Images/s of the first opening."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "faces"
        source.mkdir()
        _write_parquet(source, records)
        ways = {
            "datasets, 1 process": lambda: datasets.load_dataset(str(source)),
            f"datasets, {cores()} processes": lambda: datasets.load_dataset(str(source), num_proc=cores()),
            f"ffc_ds, {cores()} threads": lambda: load_faces(str(source), "train", "image", "label"),
        }
        rates = {}
        for number, (name, opened) in enumerate(ways.items()):
            datasets.config.HF_DATASETS_CACHE = Path(folder) / f"cache-{number}"
            start = perf_counter()
            opened()
            rates[name] = records / (perf_counter() - start)
    return rates


def _write_parquet(folder: Path, records: int) -> None:
    random = np.random.default_rng(0)
    for number in range(FILES):
        count = records // FILES
        images = [{"bytes": random.bytes(RECORD_BYTES), "path": None} for _ in range(count)]
        table = pa.table({"image": images, "label": random.integers(0, 1000, count)})
        place = folder / f"train-{number:05d}-of-{FILES:05d}.parquet"
        pq.write_table(table, place, row_group_size=1000, compression="none")


def _tables(found: dict) -> tuple[str, str]:
    heading = ["images", "memory of the builder, MiB", "s", "memory of a rank that opens it, MiB", "s"]
    forms = {"build_mib": "{:,.0f}", "build_s": "{:,.0f}", "open_mib": "{:,.0f}", "open_s": "{:.1f}"}
    rows = [
        [f"{int(count):,}", *(form.format(each[key]) for key, form in forms.items())]
        for count, each in found["memory"].items()
    ]
    speeds = [[name, f"{rate:,.0f}"] for name, rate in found["first"].items()]
    return markdown_table(heading, rows), markdown_table(["first opening", "images/s"], speeds)
