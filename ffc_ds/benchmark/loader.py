"""Speed of the data path alone: reading, decoding and collating images, beside bare JPEG decoding."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import simplejpeg
from jsonargparse.typing import PositiveInt

from ffc_ds.benchmark.pages import how_it_was_made, markdown_table, this_command, this_machine
from ffc_ds.data.batch_checks import check_shared_memory
from ffc_ds.data.decoding import decode_many
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.loader import make_loader
from ffc_ds.data.opening import load_faces
from ffc_ds.data.sampler import Sampler
from ffc_ds.errors import UserError

ABOUT = """Batches of the dual loader, {batch_size} images of {image_size} x {image_size} pixels, from {data}: the parts
one after another in one process, then the whole path through worker processes, from the first batch to the last. An
image that stands in a batch twice is decoded once and counts once. The bare decoding is simplejpeg on the same bytes:
in turn with the parts, and in as many processes at once as there are workers, in turn with the whole path. Of the
path medians of {rounds} rounds. Workers share the cores of the machine with the process that receives their batches."""
PARTS = ("plan", "read", "decode", "collate")
ROUNDS = 5


def run_loader(
    data: str = "generated:1000:112",
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
    image_size: PositiveInt = 112,
    batch_size: PositiveInt = 192,
    workers: tuple[PositiveInt, ...] = (1, 2),
    steps: PositiveInt = 100,
    output: str = "docs/results",
) -> None:
    """Measure images per second of the data path alone, by its parts and by worker.

    Writes OUTPUT/loader.md and loader.json. Raises UserError if the data cannot be used.

    Args:
        data: Hub name, folder of parquet files, image folder, or generated:IDENTITIES:PIXELS.
        split: Split of it.
        image_column: Column with the images.
        label_column: Column with the identity of each image.
        image_size: Side of the decoded images in pixels.
        batch_size: Images of a step, both views together.
        workers: Numbers of worker processes.
        steps: Batches that are timed.
        output: Folder of the results.
    """
    from ffc_ds.training.report import versions  # imports DeepSpeed

    check_shared_memory(batch_size, image_size, max(workers))
    faces = load_faces(data, split, image_column, label_column)
    sampler = Sampler(IdentityIndex.build(faces.labels), batch_size)
    parts, bare = time_parts(faces, sampler, image_size, steps)
    paths = {count: time_workers(faces, sampler, image_size, steps, count) for count in workers}
    found = {"parts": parts, "bare_decoding": bare, "workers": paths}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loader.json").write_text(json.dumps(found, indent=1))
    about = ABOUT.format(batch_size=batch_size, image_size=image_size, data=data, rounds=ROUNDS)
    made = how_it_was_made([this_command()], versions(), this_machine("cpu"))
    (folder / "loader.md").write_text("\n\n".join(["# Speed of the data path", about, *_tables(**found), made]) + "\n")


def time_parts(faces: Faces, sampler: Sampler, image_size: int, steps: int) -> tuple[dict[str, float], float]:
    """Images/s of each part of the path, and of bare decoding. Raises UserError for an image that is no JPEG."""
    start = perf_counter()
    plans = sampler.plans(np.arange(steps + 1))
    planning = (perf_counter() - start) / len(plans)
    images = np.empty((sampler.batch_size, image_size, image_size, 3), dtype=np.uint8)
    seconds, decoded = np.zeros((steps + 1, len(PARTS) + 1)), np.zeros(steps + 1)
    for step, plan in enumerate(plans):
        stamps = [perf_counter()]
        distinct, first, which = np.unique(plan.images.ravel(), return_index=True, return_inverse=True)
        stamps.append(perf_counter())
        encoded = faces.encoded(distinct)
        stamps.append(perf_counter())
        decode_many(encoded, image_size, [images[place] for place in first])
        stamps.append(perf_counter())
        again = np.flatnonzero(first[which] != np.arange(len(which)))
        images[again] = images[first[which[again]]]
        stamps.append(perf_counter())
        _decode_bare(encoded, image_size, faces.name)
        stamps.append(perf_counter())
        sorting, read, decode, repeat, bare = np.diff(stamps)
        seconds[step], decoded[step] = (planning, read, decode, sorting + repeat, bare), len(distinct)
    # the first step opens files
    *parts, bare = (decoded[1:].sum() / seconds[1:].sum(0)).tolist()
    return dict(zip(PARTS, parts, strict=True)), bare


def _decode_bare(encoded: list[bytes], image_size: int, name: str) -> None:
    try:
        for one in encoded:
            simplejpeg.decode_jpeg(one, min_height=image_size, min_width=image_size)
    except ValueError as error:
        raise UserError(f"{name} holds images that simplejpeg cannot decode ({error}): compare on JPEGs.") from None


def time_workers(faces: Faces, sampler: Sampler, image_size: int, steps: int, workers: int) -> dict[str, float]:
    """Images/s of the whole path through worker processes and of as many bare decoders, and the ratio of the two."""
    distinct = [np.unique(plan.images) for plan in sampler.plans(np.arange(1, steps + 1))]
    encoded = faces.encoded(np.concatenate(distinct))
    times = np.empty((ROUNDS, 2))
    # forked like the loader's own workers, so that they hold the bytes already
    with ProcessPoolExecutor(workers, get_context("fork"), _hold, (encoded, image_size)) as decoders:
        for number in range(ROUNDS):
            bare = [decoders.submit(_decode_part, part, workers) for part in range(workers)]
            times[number, 0] = max(each.result() for each in bare)
            arrivals = [perf_counter() for _ in make_loader(faces, sampler, image_size, 0, 1, 1, 0, steps + 1, workers)]
            times[number, 1] = arrivals[-1] - arrivals[0]
    bare, path = np.median(len(encoded) / times, axis=0)
    return {"path": path, "bare": bare, "ratio": np.median(times[:, 0] / times[:, 1])}


_held = ()  # in a decoding process: encoded images and image size


def _hold(encoded, image_size):
    global _held
    _held = encoded, image_size


def _decode_part(part: int, parts: int) -> float:
    """Seconds."""
    encoded, image_size = _held
    start = perf_counter()
    _decode_bare(encoded[part::parts], image_size, "data")
    return perf_counter() - start


def _tables(parts: dict[str, float], bare_decoding: float, workers: dict[int, dict[str, float]]) -> list[str]:
    whole = 1 / sum(1 / rate for rate in parts.values())
    rates = parts | {"together": whole, "bare JPEG decoding": bare_decoding}
    rows = [[name, f"{rate:,.0f}", f"{100 * whole / rate:.1f} %"] for name, rate in rates.items()]
    split = markdown_table(["part", "images/s", "share of the time"], rows)
    heading = ["worker processes", "images/s", "as many bare decoders, images/s", "ratio"]
    lines = [
        [str(n), f"{each['path']:,.0f}", f"{each['bare']:,.0f}", f"{100 * each['ratio']:.0f} %"]
        for n, each in workers.items()
    ]
    return [split, markdown_table(heading, lines)]
