"""Damage to files, each of which changes what is in them."""

from collections.abc import Callable
from pathlib import Path
from random import Random

BLOCK = 512  # bytes


def removed(path: Path, rng: Random) -> None:
    path.unlink()


def cut(path: Path, rng: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def with_a_flipped_bit(path: Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def with_a_zeroed_block(path: Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    within = rng.choice([place for place, value in enumerate(content) if value])
    start = within // BLOCK * BLOCK
    size = len(content[start : start + BLOCK])
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


DAMAGES: list[Callable[[Path, Random], None]] = [removed, cut, with_a_flipped_bit, with_a_zeroed_block]


def damages_of(path: Path) -> list[Callable[[Path, Random], None]]:
    """What can happen to it: there is nothing to change in a file without content."""
    return DAMAGES if path.stat().st_size else [removed]


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())
