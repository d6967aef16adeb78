"""Margin softmax cross-entropy over sharded columns, block by block, gradient included, in bounded memory.

A rank walks once over its columns: while a block of logits is in reach, its maximum, its sum of exponentials and the
sum of its columns weighted by these exponentials (that is the gradient of the log-sum-exp) are folded into running
values, which are rescaled when the maximum grows. No logit outlives its block; two matrix products per block is all.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ffc_ds.distributed import all_reduce

LOWEST = -1e30  # stands in for the maximum of no columns: finite, so that differences stay numbers


def column_blocks(columns: int, rows: int, workspace_bytes: int) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of columns whose fp32 logits [rows, block] fit the workspace (at least 64 columns each)."""
    width = max(64, workspace_bytes // (4 * max(rows, 1)) // 64 * 64)
    for start in range(0, columns, width):
        yield start, min(start + width, columns)


class OnlineSoftmax:
    """Running softmax statistics of `rows` rows: `max` [rows], `sum` [rows] of exp(logit - max), `pull` [rows, dim] of
    sum_j exp(logit_j - max) * slope_j * weights_j."""

    def __init__(self, rows: int, dim: int, scale: float, device: torch.device):
        self.scale = scale
        self.max = torch.full((rows,), LOWEST, device=device)
        self.sum = torch.zeros(rows, device=device)
        self.pull = torch.zeros(rows, dim, device=device)

    def add(self, cosines: Tensor, weights: Tensor, slopes: Tensor | None = None) -> None:
        """Fold in cosines fp32 [rows, b] (overwritten; -inf leaves a cell out) of the columns `weights` [b, dim]."""
        if not cosines.numel():
            return
        logits = cosines.mul_(self.scale)
        largest = torch.maximum(self.max, logits.amax(1))
        weighted = logits.sub_(largest[:, None]).exp_()
        shrink = (self.max - largest).exp_()
        self.sum.mul_(shrink).add_(weighted.sum(1))
        if slopes is not None:
            weighted = weighted * slopes
        self.pull.mul_(shrink[:, None])
        if weights.dtype == torch.float32:
            self.pull.addmm_(weighted, weights)
        else:
            self.pull.add_(weighted.to(weights.dtype) @ weights)
        self.max = largest


def join_ranks(maximum: Tensor, total: Tensor) -> Tensor:
    """log-sum-exp over the columns of all ranks, from this rank's maxima and sums of exp(logit - maximum)."""
    largest = all_reduce(maximum.clone(), dist.ReduceOp.MAX)
    total = all_reduce(total * (maximum - largest).exp())
    return largest + total.log()
