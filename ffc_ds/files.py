"""Outputs that are there whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ffc_ds.errors import UserError


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which takes the name `target` only if all went well.

    Raises UserError if `target` exists already or cannot be written; whatever goes wrong, nothing is left behind
    that can be removed.
    """
    if os.path.lexists(target):  # a link that leads nowhere, too
        raise UserError(f"{target} exists already: remove it, or choose another output.")
    aside = target.with_name(f".{target.name}.unfinished")
    try:
        _remove(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # what went wrong matters more; the next attempt removes it
            _remove(aside)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes its place only if all went well. Other processes may be
    writing the same: each does so by itself, and the last one's stays."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Make `text` the content of a file, which otherwise stays as it was. Raises OSError."""
    aside = path.with_name(f".{path.name}.unfinished")
    aside.write_text(text)
    aside.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
