"""Whether files are still the same files: by their names, sizes and contents, since time stamps can be carried over."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

SMALL = 1 << 26  # bytes; a file that has no more than its share of them is read from end to end
BLOCK = 1 << 10  # bytes
FEWEST = 4  # blocks of a larger file
PACE = 1 << 24  # bytes of it for each block more
PART = 256  # files of one task
THREADS = 16  # a network file system answers many at once


def content_fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """Hexadecimal, the same for the same (name, path) pairs in any order while names, sizes and contents stay.

    Small files are read whole if they are few; of the others their first and last block and some evenly between them
    are, so that a fingerprint costs little more than looking at the files. Raises OSError for a file that cannot be
    read.
    """
    files = sorted(files)
    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    digest = partial(_digest, small=SMALL // max(len(files), 1))
    with ThreadPoolExecutor(THREADS) as pool:
        return hashlib.blake2b(b"".join(pool.map(digest, parts)), digest_size=16).hexdigest()


def _digest(files: list[tuple[str, Path]], small: int) -> bytes:
    digest = hashlib.blake2b()
    for name, path in files:
        digest.update(hashlib.blake2b(os.fsencode(name)).digest())
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8))
            last, blocks = max(size - BLOCK, 0), size // BLOCK + 2 if size <= small else FEWEST + size // PACE
            for place in dict.fromkeys(last * block // (blocks - 1) for block in range(blocks)):
                digest.update(os.pread(file.fileno(), BLOCK, place))
    return digest.digest()
