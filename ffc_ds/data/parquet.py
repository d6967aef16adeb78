"""Parquet files as memory-mapped Arrow, from which images can be taken one by one: converted once, on all cores."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast

from ffc_ds.data.content import Extents, content_fingerprint
from ffc_ds.data.copies import open_copy
from ffc_ds.data.faces import class_names, is_text
from ffc_ds.errors import UserError
from ffc_ds.files import replaced
from ffc_ds.progress import progress

# Each part of a memory-mapped file costs 3 KB of every process that opens it, and has to fit the converter's memory.
PART_BYTES = 1 << 27
PART_ROWS = 1 << 16
READ_BYTES = 1 << 20  # of a column at once


def open_parquet(
    files: Mapping[str, Sequence[str]], columns: Sequence[str], features: datasets.Features | None, cache: Path
) -> dict[str, datasets.Dataset]:
    """The splits that consist of these files, memory-mapped, with those of `columns` that they have: the images, then
    the labels.

    A file that is not in `cache` yet, by its content, is converted there; interrupted, the rest is converted next time.
    features: of the columns, where somebody says so, otherwise what the files say.
    Raises UserError for a file that cannot be read or has not the columns of the others.
    """
    schemas = {split: _common_schema(paths, columns, features) for split, paths in files.items()}
    converted = {split: _places(paths, schemas[split], columns, cache) for split, paths in files.items()}
    missing = {
        place: (path, schemas[split])
        for split, paths in files.items()
        for path, place in zip(paths, converted[split], strict=True)
        if not place.exists()
    }
    _convert_all(missing)
    return {
        split: datasets.concatenate_datasets(
            [
                open_copy(place, path, pq.read_metadata(path).num_rows)
                for path, place in zip(files[split], places, strict=True)
            ]
        )
        for split, places in converted.items()
    }


def _common_schema(files: Sequence[str], columns: Sequence[str], features: datasets.Features | None) -> pa.Schema:
    schemas = [_schema(file) for file in files]
    first = schemas[0]
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        for column in columns:
            if (column in schema.names) != (column in first.names):
                without, other = (file, files[0]) if column in first.names else (files[0], file)
                raise UserError(
                    f"{without} lacks the column {column!r}, which {other} has, and holds "
                    f"{', '.join(_schema(without).names)}: make the files alike, or take the odd ones away"
                )
    if features is None:
        _check_kinds(files, schemas, columns[1])
        _check_classes(files, schemas, columns[1])
        features = datasets.Features.from_arrow_schema(first)
    chosen = datasets.Features({name: features[name] for name in first.names if name in columns and name in features})
    for column in chosen:
        types = {schema.field(column).type for schema in schemas}
        if len(types) > 1 and all(map(pa.types.is_integer, types)):
            chosen[column] = datasets.Value("int64")
    # Without a column that is asked for, all are kept, so that the message about it can name them.
    return chosen.arrow_schema if len(chosen) == len(set(columns)) else features.arrow_schema


def _check_kinds(files: Sequence[str], schemas: Sequence[pa.Schema], column: str) -> None:
    """Raise UserError where labels are of different kinds: as numbers, the texts 1 and 01 would be one person."""
    kinds = [_kind(schema.field(column).type) if column in schema.names else "" for schema in schemas]
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"the column {column!r} holds {kinds[0]} in {files[0]} and {kind} in {file}: write the labels of all "
                "files as numbers, or all as texts"
            )


def _kind(label: pa.DataType) -> str:
    if pa.types.is_dictionary(label):
        label = label.value_type
    if is_text(label):
        return "texts"
    return "integers" if pa.types.is_integer(label) else str(label)


def _check_classes(files: Sequence[str], schemas: Sequence[pa.Schema], column: str) -> None:
    """Raise UserError where files number their classes differently: one number would be several people."""
    kinds = {}  # what thousands of files say alike is parsed once
    for file, schema in zip(files, schemas, strict=True):
        kinds.setdefault((schema.metadata or {}).get(b"huggingface"), (file, schema))
    first, *others = (
        (file, class_names(datasets.Features.from_arrow_schema(schema).get(column))) for file, schema in kinds.values()
    )
    for file, names in others:
        if names != first[1]:
            raise UserError(
                f"{first[0]} and {file} do not have the same classes in the column {column!r}: write the labels of all "
                "files anew, by one list of names, or as texts"
            )


def _schema(file: str) -> pa.Schema:
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no whole parquet file ({reason}): get it again, or take it away") from error
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise UserError(f"{file} has several columns called {', '.join(twice)}: rename all but one")
    return schema


def label_extents(columns: Sequence[str]) -> Extents:
    """Where all columns but the first, the images, lie in a parquet file: a few bytes an image, of which two may change
    places while all else stays."""

    def extents(path: Path) -> Iterator[tuple[int, int]]:
        metadata = pq.read_metadata(path)
        paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
        parts = tuple(f"{column}." for column in columns[1:])  # of a column that has several
        wanted = [leaf for leaf, path in enumerate(paths) if path in columns[1:] or path.startswith(parts)]
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, wanted):
                start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
                yield start, chunk.total_compressed_size

    return extents


def _places(files: Sequence[str], schema: pa.Schema, columns: Sequence[str], cache: Path) -> list[Path]:
    """Where the copies of these files are, if they are there."""
    names = class_names(datasets.Features.from_arrow_schema(schema).get(columns[1]))
    kind = f"{schema}{names or ''}"  # as text, a schema is cut off somewhere in its names
    labels = label_extents(columns)
    return [cache / f"{content_fingerprint([(kind, Path(file))], whole=labels)}.arrow" for file in files]


def _convert_all(missing: Mapping[Path, tuple[str, pa.Schema]]) -> None:
    if not missing:
        return
    total = sum(pq.read_metadata(file).num_rows for file, _ in missing.values())
    # Arrow works outside of Python's lock, so threads are as good as processes, and start at once.
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        jobs = [pool.submit(convert, file, schema, place) for place, (file, schema) in missing.items()]
        with progress(desc="open for the first time", unit="images", total=total) as bar:
            for job in as_completed(jobs):
                bar.update(job.result())
    finally:
        pool.shutdown(cancel_futures=True)


def convert(file: str, schema: pa.Schema, place: Path) -> int:
    """Write the columns of a parquet file to an Arrow file, aside and renamed. Returns its rows. Raises UserError."""
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_BYTES)  # else whole row groups stay in memory
        with (
            replaced(place) as aside,
            pa.OSFile(str(aside), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            for part in _parts(parquet, schema.names):
                writer.write_table(table_cast(part, schema).combine_chunks())
        return parquet.metadata.num_rows
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file} cannot be copied to {place.parent} ({reason}): there must be room (HF_DATASETS_CACHE names "
            "another folder), and its columns must be of the kinds that the other files have"
        ) from error


def _parts(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    pending, size = [], 0
    for batch in parquet.iter_batches(1024, columns=columns):
        pending.append(batch)
        size += batch.nbytes
        if size >= PART_BYTES or sum(map(len, pending)) >= PART_ROWS:
            yield pa.Table.from_batches(pending)
            pending, size = [], 0
    if pending:
        yield pa.Table.from_batches(pending)
