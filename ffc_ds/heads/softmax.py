"""Margin softmax cross-entropy over sharded columns, block by block, gradient included, in bounded memory.

A rank walks once over its columns: while a block of logits is in reach, its maximum, its sum of exponentials and the
sum of its columns weighted by these exponentials (that is the gradient of the log-sum-exp) are folded into running
values, which are rescaled when the maximum grows. Two matrix products per block is all.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ffc_ds.distributed import all_reduce, to_device
from ffc_ds.half_precision import multiplies_bf16
from ffc_ds.heads.margins import Margin, Rows
from ffc_ds.heads.workspace import Workspace

LOWEST = -1e30  # stands in for the maximum of no columns: finite, so that differences stay numbers
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # class rows of a block: in a CPU's cache; few launches on a GPU


def cell_bytes(dtype: torch.dtype) -> int:
    """Of a cell of logits against class rows of that type: fp32, and what is multiplied in their own type."""
    return 4 if dtype == torch.float32 else 4 + dtype.itemsize


def block_width(column_bytes: int, dim: int, workspace_bytes: int, device: torch.device) -> int:
    """Columns, a multiple of 64, of which each takes `column_bytes` while it is worked on: as many as fit the
    workspace (but 64 at least), of class rows [width, dim] that suit the device."""
    width = min(workspace_bytes // max(column_bytes, 1), BLOCK_BYTES.get(device.type, 256 << 20) // (4 * dim))
    return max(64, width // 64 * 64)


def column_blocks(columns: int, width: int) -> Iterator[slice]:
    """Blocks of at most `width` columns."""
    for start in range(0, columns, width):
        yield slice(start, min(start + width, columns))


def product_type(weights: Tensor) -> torch.dtype:
    """What class rows are multiplied in: their own type, or fp32 where bf16 would be slower."""
    return weights.dtype if multiplies_bf16(weights.device.type) else torch.float32


def as_multiplied(weights: Tensor, workspace: Workspace) -> Tensor:
    """A block of class rows in that type: itself, or a copy."""
    kind = product_type(weights)
    return weights if kind == weights.dtype else workspace.take("exact", weights.shape, kind).copy_(weights)


def products(features: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    """features @ weights.T of [R, dim] and [b, dim], computed in the type of the weights, into fp32 `out` [R, b]."""
    if weights.dtype == torch.float32:
        return torch.mm(features, weights.T, out=out)
    return out.copy_(features.to(weights.dtype) @ weights.T)


class Cells:
    """Cells of a matrix of logits, which is seen in blocks of columns.

    `columns` int64 [n] and, for single cells rather than whole columns, `rows` int64 [n] are host data; here and on the
    device they are kept in the order of the columns.
    """

    def __init__(self, columns: np.ndarray, device: torch.device, rows: np.ndarray | None = None):
        order = np.argsort(columns, kind="stable")
        self._columns = columns[order]
        self.columns = to_device(self._columns, device)
        self.rows = None if rows is None else to_device(rows[order], device)

    def inside(self, block: slice) -> slice:
        """Which of the cells lie in these columns."""
        return slice(*np.searchsorted(self._columns, (block.start, block.stop)))

    def hide(self, cosines: Tensor, block: slice) -> None:
        """Write -inf into the cells of `cosines` [rows, block]: the softmax will not see them."""
        inside = self.inside(block)
        if inside.start == inside.stop:
            return
        columns = self.columns[inside] - block.start
        if self.rows is None:
            cosines.index_fill_(1, columns, -torch.inf)
        else:
            hidden = cosines.new_full((), -torch.inf)  # a number would come from host memory, for which the host waits
            cosines.index_put_((self.rows[inside], columns), hidden)


def add_rows(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """target[rows[i]] += values[i] for rows (int64 [n]) that may repeat, summed in the same order in every run."""
    if target.is_cuda:
        target.index_put_((rows,), values, accumulate=True)  # sorts, where index_add_ would add as threads come
    else:
        target.index_add_(0, rows, values)


class OnlineSoftmax:
    """Running softmax statistics of `rows` rows: `max` [rows], `sum` [rows] of exp(logit - max), `pull` [rows, dim] of
    sum_j exp(logit_j - max) * slope_j * weights_j."""

    def __init__(self, rows: int, dim: int, scale: float, device: torch.device):
        self.scale = scale
        self.max = torch.full((rows,), LOWEST, device=device)
        self.sum = torch.zeros(rows, device=device)
        self.pull = torch.zeros(rows, dim, device=device)

    def add(self, cosines: Tensor, weights: Tensor, slopes: Tensor | None = None) -> Tensor:
        """Fold in cosines fp32 [rows, b] (overwritten; -inf leaves a cell out) of the columns `weights` [b, dim].

        `slopes` [rows, b] or [b] is the derivative of a cosine by its product with `weights`. Returns what `weights`
        were multiplied by: exp(logit - max) * slope with the present `max`, in the type of `weights`.
        """
        if not cosines.numel():
            return cosines.to(weights.dtype)
        logits = cosines.mul_(self.scale)
        largest = torch.maximum(self.max, logits.amax(1))
        weighted = logits.sub_(largest[:, None]).exp_()
        shrink = (self.max - largest).exp_()
        self.sum.mul_(shrink).add_(weighted.sum(1))
        if slopes is not None:
            weighted = weighted.mul_(slopes)
        weighted = weighted.to(weights.dtype)
        self.pull.mul_(shrink[:, None])
        if weights.dtype == torch.float32:
            self.pull.addmm_(weighted, weights)
        else:
            self.pull.add_(weighted @ weights)
        self.max = largest
        return weighted


def margin_cross_entropy(
    log_sum: Tensor, target: Tensor, margin: Margin, rows: Rows, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of rows of which the logits of other classes have the log-sum-exp `log_sum` and the cosine of the
    own class is `target`, of one shape: losses, log-sum-exp of all logits, and d loss / d (scale * target)."""
    value, slope = margin.target(target, rows)
    log_sum = torch.logaddexp(log_sum, scale * value)
    losses = log_sum - scale * value
    return losses, log_sum, ((-losses).exp() - 1) * slope


def join_ranks(maximum: Tensor, total: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log-sum-exp over the columns of all ranks, from this rank's maxima and sums of exp(logit - maximum), and the sum
    over ranks of `targets`, all of one shape: two messages in all."""
    largest = all_reduce(maximum.clone(), dist.ReduceOp.MAX)
    total, targets = all_reduce(torch.stack([total * (maximum - largest).exp(), targets]))
    return largest + total.log(), targets
