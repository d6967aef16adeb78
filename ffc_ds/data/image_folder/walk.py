"""All images below a folder. What is left out is counted by reason."""

import errno
import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

from ffc_ds.data.content import PART, THREADS
from ffc_ds.data.failing_disk import is_failing
from ffc_ds.data.image_folder.kinds import NO_FILE, START, UNREADABLE, clutter, no_image
from ffc_ds.data.importers.plan import printable
from ffc_ds.errors import UserError

NAMED = 3  # files of each reason


class LeftOut(defaultdict):
    """Paths of what is left out, by reason; as text, their number and the first few."""

    def __init__(self):
        super().__init__(list)

    def __str__(self) -> str:
        reasons = [
            f"{len(paths):,} x {reason}: {', '.join(map(printable, paths[:NAMED]))}{', ...' * (len(paths) > NAMED)}"
            for reason, paths in self.items()
        ]
        return f"left out: {'; '.join(reasons) or 'nothing'}"


class Walk(NamedTuple):
    """What is below a folder."""

    root: str
    """Absolute path."""
    images: list[str]
    """Paths relative to the root: of the images in itself, then folder by folder, sorted by name."""
    folders: list[str]
    """Paths of the folders that were looked into."""
    left_out: LeftOut
    """What is no image, paths of folders with a slash at the end."""


def walk(root: str | os.PathLike) -> Walk:
    """Find the images of every format that is decoded here, whatever their files are called; links are followed.

    The start of every file is read, by threads. Memory is that of the relative paths. Raises UserError where there is
    no folder, for a link that leads back to a folder that it lies in, and where a disk or its server fails.
    """
    root = os.path.abspath(root)
    if os.path.isfile(root):
        raise UserError(f"{printable(root)} is a file: give the folder that it lies in")
    try:
        entries = list(_entries(root, _Folder("", os.path.realpath(root))))
    except FileNotFoundError:
        raise UserError(f"there is no folder {printable(root)}: check the path") from None
    except OSError as error:
        raise UserError(f"folder {printable(root)} cannot be read: {error.strerror}") from None
    left_out = LeftOut()

    def kept(files: Iterator[_File]) -> list[str]:
        found = []
        for path, reason in files:
            if reason is None:
                found.append(path)
            else:
                left_out[reason].append(path)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        files = (entry for entry in entries if not isinstance(entry, _Folder))
        folders = [entry for entry in entries if isinstance(entry, _Folder)]
        paths = kept(chain(files, _in_parts(pool, functools.partial(_below, root), folders)))
        folders = [path.removesuffix("/") for path in paths if path.endswith("/")]
        paths = [path for path in paths if not path.endswith("/")]
        images = kept(_in_parts(pool, functools.partial(_judged, root), paths))
    return Walk(root, images, folders, left_out)


class _Folder(NamedTuple):
    path: str
    """Relative to the root."""
    real: str
    trail: tuple[str, ...] = ()
    """Real paths of the folders that hold the links by which one came here."""


_File = tuple[str, str | None]  # path relative to the root, ending in / for a folder, and why it is left out


def _in_parts(pool: ThreadPoolExecutor, read: Callable[[list], list[_File]], items: list) -> Iterator[_File]:
    parts = [items[start : start + PART] for start in range(0, len(items), PART)]
    return chain.from_iterable(pool.map(read, parts))


def _below(root: str, folders: list[_Folder]) -> list[_File]:
    """The folders and what is below them."""
    found = []
    for folder in folders:
        try:
            entries = list(_entries(root, folder))
        except OSError as error:
            found.append((f"{folder.path}/", _unreadable(folder.path, error)))
            continue
        found.append((f"{folder.path}/", None))
        for entry in entries:
            found += _below(root, [entry]) if isinstance(entry, _Folder) else [entry]
    return found


def _entries(root: str, folder: _Folder) -> Iterator[_Folder | _File]:
    """What is in a folder, sorted by name."""
    with os.scandir(os.path.join(root, folder.path)) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        path = os.path.join(folder.path, entry.name)
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _loop(entry.path) from None
            yield path, _unreadable(path, error)
            continue
        reason = clutter(entry.name, is_folder)
        if reason or not is_folder:
            yield path + "/" * is_folder, reason
        elif entry.is_symlink():
            real, trail = os.path.realpath(entry.path), (*folder.trail, folder.real)
            if any(f"{place}/".startswith(f"{real.rstrip('/')}/") for place in trail):
                raise _loop(entry.path)
            yield _Folder(path, real, trail)
        else:
            yield _Folder(path, os.path.join(folder.real, entry.name), folder.trail)


def _loop(link: str) -> UserError:
    target = printable(os.readlink(link))
    return UserError(f"{printable(link)} is a link to {target}, which leads to itself again: remove the link")


def _judged(root: str, paths: list[str]) -> list[_File]:
    return [(path, _judgement(os.path.join(root, path))) for path in paths]


def _judgement(path: str) -> str | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
        try:
            return no_image(path, os.read(file, START))
        finally:
            os.close(file)
    except OSError as error:
        return _unreadable(path, error)


def _unreadable(path: str, error: OSError) -> str:
    if is_failing(error):
        raise UserError(f"{printable(path)} cannot be read now ({error.strerror}): give the same command again later")
    return NO_FILE if error.errno == errno.ENOENT else f"{UNREADABLE} ({error.strerror})"
