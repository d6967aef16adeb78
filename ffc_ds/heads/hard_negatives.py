"""The h largest cosines of each row over sharded columns, found block by block."""

import torch
from torch import Tensor

from ffc_ds.distributed import all_gather, rank

GROUP = 64  # a row's h largest lie in the h groups with the largest maxima: a maximum is far cheaper than a sort


def hard_negatives_of(slots: int) -> int:
    """h for a pool of so many slots, as in the code that F2C released."""
    return min(max(int(2e-4 * slots), 3), 10)


class HardNegatives:
    """Running h largest cosines of `rows` rows: `values` [rows, h], descending, -inf where there are fewer columns,
    and `columns` int64 [rows, h]."""

    def __init__(self, rows: int, h: int, device: torch.device):
        self.h = h
        self.values = torch.full((rows, h), -torch.inf, device=device)
        self.columns = torch.zeros(rows, h, dtype=torch.int64, device=device)

    def add(self, cosines: Tensor, first_column: int) -> None:
        """Fold in the cosines [rows, b] of columns first_column.. ; -inf leaves a cell out."""
        if not cosines.numel():
            return
        values, columns = _candidates(cosines, self.h)
        values = torch.cat([self.values, values], 1)
        columns = torch.cat([self.columns, columns + first_column], 1)
        self.values, best = values.topk(self.h, 1)
        self.columns = columns.gather(1, best)


def _candidates(cosines: Tensor, h: int) -> tuple[Tensor, Tensor]:
    """A few columns of [rows, b] that hold the h largest of each row: values and columns [rows, some]."""
    rows, width = cosines.shape
    grouped = width // GROUP * GROUP
    if grouped <= 2 * h * GROUP:
        return cosines, torch.arange(width, device=cosines.device).expand(rows, -1)
    groups = cosines[:, :grouped].unflatten(1, (-1, GROUP))
    best = groups.amax(2).topk(h, 1).indices
    columns = (best[:, :, None] * GROUP + torch.arange(GROUP, device=cosines.device)).flatten(1)
    rest = torch.arange(grouped, width, device=cosines.device).expand(rows, -1)
    columns = torch.cat([columns, rest], 1)
    return cosines.gather(1, columns), columns


def largest_of_all_ranks(values: Tensor, h: int) -> Tensor:
    """Which of this rank's candidates [..., n] (n >= h) are among the h largest of all ranks: bool [..., n].

    Exactly h cells are chosen over all ranks; among equals the one of the lowest rank, then of the lowest position.
    """
    best = values.topk(h, -1)
    everyone = all_gather(best.values).movedim(0, -2).flatten(-2)
    chosen = everyone.argsort(dim=-1, descending=True, stable=True)[..., :h]
    own = torch.zeros_like(everyone, dtype=torch.bool).scatter_(-1, chosen, True)
    own = own.unflatten(-1, (-1, h))[..., rank(), :]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, best.indices, own)
