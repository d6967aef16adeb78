"""The parquet files of a set of embeddings. Each says in itself what it was made of, and is there whole or not at all.

Which images are in which file depends on their number alone, so that any number of ranks can go on.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ffc_ds.errors import UserError
from ffc_ds.files import write_whole, written_aside

DAMAGED = "damaged.tsv"
ABOUT, LEFT_OUT = b"ffc_ds", b"ffc_ds_damaged"  # keys of a file's metadata
OTHERS = {"weights": "another model", "content": "other data"}  # whose fingerprints say nothing to people


@dataclass(frozen=True)
class Parts:
    """The files of a folder, `size` images in each but the last.

    about: what the embeddings are made of, ready for JSON. schema: of their columns.
    """

    folder: Path
    images: int
    size: int
    about: dict[str, Any]
    schema: pa.Schema

    @property
    def count(self) -> int:
        return -(-self.images // self.size)

    def path(self, number: int) -> Path:
        return self.folder / f"train-{number:05d}-of-{self.count:05d}.parquet"

    def rows(self, number: int) -> np.ndarray:
        """The images of a file, int64."""
        return np.arange(number * self.size, min((number + 1) * self.size, self.images))

    def missing(self) -> list[int]:
        """Files that are not there yet. Raises UserError if the folder holds any other, or one made of something else,
        or one that is cut."""
        paths = [self.path(number) for number in range(self.count)]
        expected = {path.name: number for number, path in enumerate(paths)}
        try:
            there = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return list(range(self.count))
        except OSError as error:
            raise UserError(f"{self.folder} cannot be used: {error.strerror}") from None
        for path in there:
            if path.name in expected or path.suffix == ".parquet":
                self._check(path, expected.get(path.name))
            elif path.name != DAMAGED:
                raise UserError(f"{self.folder} holds {path.name}: give the embeddings a folder of their own")
        return [number for number, path in enumerate(paths) if path not in set(there)]

    def write(self, number: int, columns: list[pa.Array], damaged: list[tuple[str, str]]) -> None:
        """Write a file, aside and renamed. Raises UserError if it cannot be written."""
        metadata = {ABOUT: json.dumps(self.about), LEFT_OUT: json.dumps(damaged)}
        table = pa.table(columns, schema=self.schema.with_metadata(metadata))
        with written_aside(self.path(number)) as path:
            pq.write_table(table, path, use_dictionary=["name"])

    def damaged(self) -> Iterator[tuple[str, str]]:
        """What every file has left out, and why. Raises UserError for a file that cannot be read."""
        for number in range(self.count):
            try:
                metadata = pq.read_schema(self.path(number)).metadata
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{self.path(number)} was written and cannot be read: {error}") from None
            yield from json.loads(metadata[LEFT_OUT])

    def note_damaged(self, text: str) -> None:
        """Write the list for people. Raises UserError if it cannot be written."""
        try:
            write_whole(self.folder / DAMAGED, text)
        except OSError as error:
            raise UserError(f"{self.folder / DAMAGED} cannot be written: {error.strerror}") from None

    def _check(self, path: Path, number: int | None) -> None:
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
            metadata = schema.metadata or {}
            about, damaged = (json.loads(metadata.get(key, "null")) for key in (ABOUT, LEFT_OUT))
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is cut or damaged ({reason:.200}): remove it, and the same command makes it anew"
            ) from None
        if not (isinstance(about, dict) and isinstance(damaged, list)):
            raise UserError(f"{path} is no file of embeddings of embed.py: give these a folder of their own")
        if differing := [key for key in about | self.about if about.get(key) != self.about.get(key)]:
            changes = [OTHERS.get(key) or f"{key} was {about.get(key)}, now {self.about.get(key)}" for key in differing]
            raise UserError(
                f"{path} was made otherwise ({'; '.join(changes)}): give another output_dir, or remove the files there"
            )
        expected = 0 if number is None else len(self.rows(number))
        if not schema.remove_metadata().equals(self.schema) or rows + len(damaged) != expected:
            raise UserError(
                f"{path} holds {rows:,} rows of ({_columns(schema)}), not what is left of {expected:,} rows of "
                f"({_columns(self.schema)}): remove it, and the same command makes it anew"
            )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
