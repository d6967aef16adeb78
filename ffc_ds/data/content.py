"""Whether files are still the same files: by their names, sizes and contents, since time stamps can be carried over."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

SMALL = 1 << 26  # bytes; a file that has no more than its share of them is read from end to end
BLOCK = 1 << 10  # bytes
FEWEST = 4  # blocks of a larger file
PACE = 1 << 24  # bytes of it for each block more
PART = 256  # files of one task
AT_ONCE = 1 << 20  # bytes, of what is read from end to end
UNREADABLE = b"unreadable"
THREADS = 16  # a network file system answers many at once

Extents = Callable[[Path], Iterable[tuple[int, int]]]  # (start, bytes) in a file


def everything(path: Path) -> list[tuple[int, int]]:
    return [(0, path.stat().st_size)]


def content_fingerprint(
    files: Iterable[tuple[str, Path]], all_readable: bool = True, whole: Extents | None = None
) -> str:
    """Hexadecimal, the same for the same (name, path) pairs in any order while names, sizes and contents stay.

    Small files are read whole if they are few; of the others their first and last block and some evenly between them
    are, so that a fingerprint costs little more than looking at the files; and, from end to end, what is `whole`, where
    a change may leave the size as it is. Raises OSError for a file that cannot be read, unless not `all_readable` need
    be: then it is that it cannot be read which counts.
    """
    files = sorted(files)
    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    digest = partial(_digest, small=SMALL // max(len(files), 1), all_readable=all_readable, whole=whole)
    with ThreadPoolExecutor(THREADS) as pool:
        return hashlib.blake2b(b"".join(pool.map(digest, parts)), digest_size=16).hexdigest()


def _digest(files: list[tuple[str, Path]], small: int, all_readable: bool, whole: Extents | None) -> bytes:
    digest = hashlib.blake2b()
    for name, path in files:
        digest.update(hashlib.blake2b(os.fsencode(name)).digest())
        try:
            for part in _parts(path, small, whole):
                digest.update(part)
        except OSError:
            if all_readable:
                raise
            digest.update(UNREADABLE)
    return digest.digest()


def _parts(path: Path, small: int, whole: Extents | None) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        yield size.to_bytes(8)
        last, blocks = max(size - BLOCK, 0), size // BLOCK + 2 if size <= small else FEWEST + size // PACE
        for place in dict.fromkeys(last * block // (blocks - 1) for block in range(blocks)):
            yield os.pread(file.fileno(), BLOCK, place)
        for start, size in whole(path) if whole else ():
            for place in range(start, start + size, AT_ONCE):
                yield os.pread(file.fileno(), min(AT_ONCE, start + size - place), place)
