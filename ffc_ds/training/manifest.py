"""manifest.json: size and checksum of every file of a checkpoint, taken while the files are written.

A checksum (xxh3, 128 bit) is that of the bytes on their way to the disk, so it tells of what goes wrong there, too. It
finds damage; against somebody who writes a manifest to go with other files it is no help.
"""

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from xxhash import xxh3_128

from ffc_ds.distributed import rank, together, world_size
from ffc_ds.errors import UserError
from ffc_ds.progress import waiting

MANIFEST = "manifest.json"
BLOCK = 1 << 22  # bytes read at once
T = TypeVar("T")


class Writer:
    """The files that this rank writes below `folder`.

    files: size in bytes and checksum of each, by name. failure: the first OSError. It is not raised, and nothing is
    written after it: ranks wait for each other in the middle of a save, so all of them must come to its end.
    """

    def __init__(self, folder: Path):
        self.folder, self.files = folder, {}
        self.failure: OSError | None = None

    def attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns, unless it or an earlier one failed."""
        if self.failure is None:
            try:
                return action()
            except OSError as error:
                self.failure = error
        return None

    @contextmanager
    def open(self, path: Path) -> Iterator["_Stream"]:
        """A file to write from its beginning to its end; it is on the disk when this is left."""
        stream = _Stream(path, self.attempt)
        try:
            yield stream
        finally:
            stream.close()
        self.files[self._name(path)] = stream.entry()

    def make_folder(self, path: Path) -> None:
        self.attempt(lambda: path.mkdir(parents=True, exist_ok=True))

    def rename(self, path: Path, target: Path) -> None:
        self.attempt(lambda: path.rename(target))
        self.files[self._name(target)] = self.files.pop(self._name(path))

    def seal(self, files: dict[str, list]) -> None:
        """Write the manifest of `files`, and see to it that all names are on the disk."""
        with self.open(self.folder / MANIFEST) as file:
            file.write(_text(files))
        self.attempt(lambda: _sync_all(self.folder))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


class _Stream(io.RawIOBase):
    """A file that can only be written onwards."""

    def __init__(self, path: Path, attempt: Callable):
        self._attempt, self._size, self._hash = attempt, 0, xxh3_128()
        self._file = attempt(lambda: open(path, "wb"))  # noqa: SIM115 (until close)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        self._hash.update(data)
        self._size += size
        self._attempt(lambda: self._file.write(data))
        return size

    def close(self) -> None:
        if self._file is not None and not self._file.closed:
            self._attempt(self._file.flush)
            self._attempt(lambda: os.fsync(self._file.fileno()))
            with suppress(OSError):  # what it still holds after a failure
                self._file.close()
        super().close()

    def entry(self) -> list:
        return [self._size, self._hash.hexdigest()]


def find_damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None; the same on all ranks, which share the reading."""
    with waiting(f"checking {path}", shown=rank() == 0):
        try:
            together(lambda: _check(path))
        except UserError as error:
            return str(error)
    return None


def _check(path: Path) -> None:
    files = _read(path)
    for name, (size, _) in files.items():
        try:
            found = (path / name).stat().st_size
        except FileNotFoundError:
            raise UserError(f"{path} is damaged: {name} is missing.") from None
        except OSError as error:
            raise _unreadable(path, name, error) from None
        if found != size:
            raise UserError(f"{path} is damaged: {name} has {found:,} bytes of {size:,}.")
    for name in _share({name: size for name, (size, _) in files.items()}):
        try:
            found = _entry(path / name)
        except OSError as error:
            raise _unreadable(path, name, error) from error
        if found != files[name]:
            raise UserError(f"{path} is damaged: {name} is not what was written (its checksum is another).")


def _unreadable(path: Path, name: str, error: OSError) -> UserError:
    return UserError(f"{path} is damaged: {name} cannot be read: {error.strerror}.")


def _share(sizes: dict[str, int]) -> list[str]:
    """The files that this rank reads, of about as many bytes as those of any other."""
    loads, shares = [0] * world_size(), [[] for _ in range(world_size())]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        loads[least] += sizes[name]
        shares[least].append(name)
    return shares[rank()]


def _read(path: Path) -> dict[str, list]:
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} has no {MANIFEST}: it is damaged, or of an earlier version, and what it holds cannot be checked."
        ) from None
    except OSError as error:
        raise _unreadable(path, MANIFEST, error) from None
    try:
        files = json.loads(text)["files"]
        whole = text == _text(files) and all(type(size) is int and type(sum_) is str for size, sum_ in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: {MANIFEST} is not what was written.")
    return files


def _text(files: dict[str, list]) -> bytes:
    """The only way in which a manifest of `files` is written: whatever else it may be, it is damaged."""
    own = xxh3_128(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"checksum": own, "files": files}, indent=1, sort_keys=True).encode() + b"\n"


def _entry(path: Path) -> list:
    """Size and checksum of a file as it is on the disk."""
    size, sum_, block = 0, xxh3_128(), memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(block):
            sum_.update(block[:read])
            size += read
    return [size, sum_.hexdigest()]


def _sync_all(folder: Path) -> None:
    for each in [path for path in folder.rglob("*") if path.is_dir()] + [folder]:
        sync(each)


def sync(folder: Path) -> None:
    """See to it that the names in a folder are on the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # there are file systems that cannot do it for folders
            raise
    finally:
        os.close(handle)
