"""Carry out a plan: parquet files of undecoded images, written in parallel, restartable.

Finished files gather in OUTPUT/.prepare, each beside a report of its broken records, and get their names when the last
one is there. An interrupted command, given again, writes what is missing.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ffc_ds.data.bounds import MAX_MEGAPIXELS, check_max_megapixels
from ffc_ds.data.importers.image_check import Check, damage
from ffc_ds.data.importers.plan import Broken, Job, Plan, Record
from ffc_ds.data.importers.processes import process_pool, results
from ffc_ds.errors import UserError
from ffc_ds.files import write_whole
from ffc_ds.progress import progress, say

ASIDE = ".prepare"
# What datasets.Features(image=Image(), label=Value("int64"), identity=Value("string")) writes.
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"dtype": "int64", "_type": "Value"},
    "identity": {"dtype": "string", "_type": "Value"},
}
SCHEMA = pa.schema(
    {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "identity": pa.string(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)
# A row group is what a reader holds at once.
GROUP_IMAGES = 1000
GROUP_BYTES = 32 * 1024**2


def write_shards(
    plan: Plan,
    output: str,
    workers: int | None = None,
    on_error: Literal["skip", "stop"] = "skip",
    check: Check = "header",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """Write the images of a plan to parquet files that `load_dataset` opens, encoded as they are.

    Args:
        output: folder to write, a new one or that of the same command interrupted.
        workers: processes; by default one for each core.
        on_error: leave a broken record out and list it in broken.tsv, or stop at it.
        check: how an image is tested: by its header and its end, or by decoding it.
        max_megapixels: an image whose header announces more is a broken record; at most 178.
    Raises:
        UserError: the folder holds something else or cannot be written, no image can be used, or a record is broken
            and on_error is stop.
    """
    check_max_megapixels(max_megapixels, "--max_megapixels")
    folder = Path(output)
    parts = [folder / ASIDE / f"{number:05d}.parquet" for number in range(len(plan.jobs))]
    try:
        _begin(folder, plan.about | {"files": len(parts), "check": check, "max_megapixels": max_megapixels})
        try:
            with process_pool(workers) as pool:
                _write_missing(pool, plan, parts, check, on_error == "stop", max_megapixels)
            images, broken = _name_files(folder, parts)
        finally:
            _remove_if_empty(folder)
    except OSError as error:
        raise UserError(
            f"the import to {folder} stopped ({error}): the same command goes on when that is mended"
        ) from error
    print(f"{images:,} images in {folder}, {broken:,} broken records" + f" (see {folder}/broken.tsv)" * (broken > 0))


def _begin(folder: Path, about: dict) -> None:
    """Make the folder, or see that it was begun for the same plan."""
    manifest = folder / ASIDE / "manifest.json"
    if not manifest.is_file():
        if folder.is_dir() and any(entry.name != ASIDE for entry in folder.iterdir()):
            raise UserError(f"{folder} is not empty: give a folder of its own to what is written")
        manifest.parent.mkdir(parents=True, exist_ok=True)
        write_whole(manifest, json.dumps(about))
    begun = json.loads(manifest.read_text())
    differing = [key for key in begun | about if begun.get(key) != about.get(key)]
    if differing == ["content"]:
        raise UserError(
            f"the source's files changed since {folder} was begun: give another folder to what they are now, or remove "
            "this one"
        )
    if differing:
        changes = "; ".join(_change(key, begun.get(key), about.get(key)) for key in differing)
        raise UserError(f"{folder} was begun for another import ({changes}): give another folder, or remove this one")


def _change(key: str, before: Any, now: Any) -> str:
    """One difference between two plans; a fingerprint says nothing to people."""
    return "the source has other files" if key == "content" else f"{key} was {before!s:.80}, now {now!s:.80}"


def _write_missing(
    pool: ProcessPoolExecutor, plan: Plan, parts: list[Path], check: Check, stop: bool, max_megapixels: float
) -> None:
    todo = [(job, part) for job, part in zip(plan.jobs, parts, strict=True) if not part.with_suffix(".json").is_file()]
    futures = [pool.submit(write_part, job, part, check, stop, max_megapixels) for job, part in todo]
    written = broken = 0
    there = len(parts) - len(todo)
    with progress(desc="write", unit="files", total=len(parts), initial=there, shown=bool(todo)) as bar:
        for report in results(futures):
            written, broken = written + report["images"], broken + len(report["broken"])
            for key, reason in report["broken"]:
                say(f"broken: {key}: {reason}")
            bar.set_postfix({"images": written, "broken": broken}, refresh=False)
            bar.update()


def write_part(job: Job, part: Path, check: Check, stop: bool, max_megapixels: float = MAX_MEGAPIXELS) -> dict:
    """Write one parquet file and then its report, each aside and renamed.

    The report is {"images": n, "bytes": size of the file, "broken": [(key, reason)]}.
    """
    partial, images, broken = part.with_suffix(".partial"), 0, []
    try:
        with pq.ParquetWriter(
            partial, SCHEMA, compression="none", use_dictionary=["label", "identity"], write_statistics=["label"]
        ) as writer:
            for group in _groups(_usable(job(), check, stop, max_megapixels, broken)):
                writer.write_batch(_batch(group))
                images += len(group)
        size = partial.stat().st_size
        if images:
            partial.rename(part)
    finally:
        partial.unlink(missing_ok=True)
    report = {"images": images, "bytes": size, "broken": broken}
    write_whole(part.with_suffix(".json"), json.dumps(report))
    return report


def _usable(
    records: Iterable[Record | Broken], check: Check, stop: bool, max_megapixels: float, broken: list[Broken]
) -> Iterator[Record]:
    """The images that can be used; the others are added to `broken`."""
    for record in records:
        if isinstance(record, Record):
            reason = damage(record.image, check, max_megapixels)
            if reason is None:
                yield record
                continue
            record = Broken(record.key, reason)
        record = Broken(*(" ".join(text.split()) for text in record))  # some libraries' reasons have several lines
        if stop:
            raise UserError(f"broken record {record.key}: {record.reason}; --on_error skip leaves such records out")
        broken.append(record)


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group, size = [], 0
    for record in records:
        group.append(record)
        size += len(record.image)
        if len(group) == GROUP_IMAGES or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _batch(records: list[Record]) -> pa.RecordBatch:
    keys, images, labels, identities = zip(*records, strict=True)
    image = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array(keys)], fields=list(SCHEMA.field("image").type)
    )
    return pa.record_batch([image, pa.array(labels, pa.int64()), pa.array(identities)], schema=SCHEMA)


def _name_files(folder: Path, parts: list[Path]) -> tuple[int, int]:
    """Give the files their names, those without an image left out, and list broken records. Can be repeated."""
    reports = [json.loads(part.with_suffix(".json").read_text()) for part in parts]
    broken = [entry for report in reports for entry in report["broken"]]
    filled = [(part, report["bytes"]) for part, report in zip(parts, reports, strict=True) if report["images"]]
    if not filled:
        first = ": ".join(broken[0]) if broken else "there is none"
        raise UserError(f"no image can be used, so {folder} stays empty (the first one: {first})")
    if broken:
        (folder / "broken.tsv").write_text("".join(f"{key}\t{reason}\n" for key, reason in broken))
    for number, (part, size) in enumerate(filled):
        named = folder / f"train-{number:05d}-of-{len(filled):05d}.parquet"
        if part.exists():
            part.rename(named)
        there = named.stat().st_size if named.exists() else 0
        if there != size:
            what = f"has {there:,} bytes, not the {size:,} of it" if there else "is gone"
            raise UserError(f"{named} was written and {what}: put it back, or remove {folder} and begin anew")
    return sum(report["images"] for report in reports), len(broken)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.rglob("*.parquet")):
        shutil.rmtree(folder / ASIDE)
        if not any(folder.iterdir()):
            folder.rmdir()
