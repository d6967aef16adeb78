"""Random first values of sharded rows that are the same on any number of ranks."""

from collections.abc import Iterator

import torch

BLOCK = 4096


def seeded_blocks(start: int, end: int, seed: int) -> Iterator[tuple[torch.Generator, slice, slice]]:
    """The blocks of BLOCK rows each that touch the rows start..end - 1 of this rank.

    Yields a generator from which all BLOCK rows are to be drawn, which of these are this rank's, and where they belong
    among its rows.
    """
    for first in range(start // BLOCK * BLOCK, end, BLOCK):
        begin, stop = max(first, start), min(first + BLOCK, end)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first // BLOCK)
        yield generator, slice(begin - first, stop - first), slice(begin - start, stop - start)
