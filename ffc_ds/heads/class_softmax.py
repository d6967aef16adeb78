"""Margin softmax against trained class weights: the loss now, the gradient of the class weights when they are updated.

The gradient of a block of class weights is worked out when that block is updated and never exists for all of them. A
refused step costs nothing: nothing was changed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ffc_ds.distributed import all_reduce, world_size
from ffc_ds.heads.margins import Margin, Rows, RunningState
from ffc_ds.heads.row_kernels import RowKernels
from ffc_ds.heads.softmax import (
    Cells,
    OnlineSoftmax,
    add_rows,
    as_multiplied,
    block_width,
    cell_bytes,
    column_blocks,
    join_ranks,
    margin_cross_entropy,
    product_type,
    products,
)
from ffc_ds.heads.workspace import Workspace

NOTHING = Rows()
SUB_CENTER_BYTES = 12  # of a row and class: the largest of its cosines, and which one it is


@dataclass(frozen=True)
class Columns:
    """Class weights that a micro-batch is compared with, of any length: `weights` [n, K * dim], K vectors a class, or
    their `rows` (int64 [m]). A column is a class.

    `targets`: the rows of the batch whose class is here, and which column it is; `hidden`: columns to leave out;
    `host_rows`: `rows` on the host, where the head needs them there.
    """

    weights: Tensor
    targets: Cells
    rows: Tensor | None = None
    hidden: Cells | None = None
    host_rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.weights if self.rows is None else self.rows)

    def block(self, block: slice, workspace: Workspace) -> Tensor:
        """Their weights [b, K * dim]: the class state itself where they lie side by side, otherwise a copy."""
        if self.rows is None:
            return self.weights[block]
        return workspace.rows("weights", self.weights, self.rows[block])


@dataclass(frozen=True)
class ClassSoftmaxSettings:
    """interclass_filter: 0, or the cosine beyond which other classes are left out; workspace_bytes: for the logits of a
    micro-batch; sub_centers: K, weight vectors of a class, of which the nearest one to a row counts; trained: whether
    `class_gradient` will be asked for."""

    margin: Margin
    scale: float
    interclass_filter: float = 0.0
    workspace_bytes: int = 256 << 20
    sub_centers: int = 1
    trained: bool = True


def bytes_a_column(rows: int, dtype: torch.dtype, settings: ClassSoftmaxSettings) -> int:
    """Of a class that is multiplied in that type, while a block is worked on: logits, slopes, masks, whose they are."""
    margin, sub_centers = settings.margin, settings.sub_centers
    cell = sub_centers * cell_bytes(dtype) + margin.bytes_a_cell + int(settings.interclass_filter > 0)
    if sub_centers > 1:
        cell += SUB_CENTER_BYTES + (4 * sub_centers if margin.bytes_a_cell else 0)
    return rows * cell


class ClassSoftmax:
    """Micro-batch `number` of a step: unit features fp32 [R, dim], equal on all ranks, and the columns that this rank
    holds. Its logits are kept for the class gradient if they fit the workspace, otherwise worked out again.

    workspace and kernels: one for all micro-batches and steps; rows: what the margin reads of them beside; state: what
    it keeps, which sees them now; width: of the blocks of a step. By default each is new, which suits a single one with
    a margin that reads and keeps nothing.
    """

    def __init__(
        self,
        features: Tensor,
        columns: list[Columns],
        settings: ClassSoftmaxSettings,
        workspace: Workspace | None = None,
        number: int = 0,
        rows: Rows = NOTHING,
        state: RunningState | None = None,
        kernels: RowKernels | None = None,
        width: int | None = None,
    ):
        workspace = workspace or Workspace(features.device)
        state = state or RunningState(settings.margin, features.device)
        self.kernels = kernels or RowKernels(workspace)
        self.features, self.columns, self.settings, self.workspace = features, columns, settings, workspace
        self.margin, self.dim = settings.margin, features.shape[1]
        self.factor = settings.scale * self.margin.loss_factor(settings.scale) / len(features)
        self.pulled = features * self.factor
        dtype, logits = product_type(columns[0].weights), len(features) * settings.sub_centers * sum(map(len, columns))
        column_bytes = bytes_a_column(len(features), dtype, settings)
        # a quarter for the block that is worked on, so that more than one can be kept
        vectors = settings.sub_centers * self.dim
        self.width = width or block_width(column_bytes, vectors, settings.workspace_bytes // 4, features.device)
        fits = settings.trained and dtype.itemsize * logits + self.width * column_bytes <= settings.workspace_bytes
        self.kept = {} if fits else None
        self._kept_memory = workspace.take(("logits", number), (logits,)) if fits and dtype == torch.float32 else None
        self._find_targets()
        target = all_reduce(self.own_target.clone()) if self.margin.reads_target else None
        self.rows = state.see(replace(rows, target=target))
        softmax = OnlineSoftmax(len(features), self.dim, settings.scale, features.device)
        for number, part in enumerate(columns):
            for block in self.blocks(number):
                weights = as_multiplied(part.block(block, workspace), workspace)
                self._fold(softmax, number, block, weights.view(-1, self.dim))
        self._join(softmax)

    def blocks(self, number: int) -> Iterator[slice]:
        """How columns[number] is walked, alike in all micro-batches of a step."""
        return column_blocks(len(self.columns[number]), self.width)

    def _find_targets(self):
        """Cosines of the rows with their own class, 0 where another rank has it; the owner keeps that class center."""
        self.own_target = torch.zeros(len(self.features), device=self.features.device)
        self.centers, self.target_norms, self.winners = [], [], []
        for part in self.columns:
            rows, columns = part.targets.rows, part.targets.columns
            weights = part.weights[columns if part.rows is None else part.rows[columns]].float()
            weights = weights.view(len(rows), self.settings.sub_centers, self.dim)
            norms = weights.norm(dim=2).clamp_min(1e-12)
            centers = weights / norms[:, :, None]
            cosines, winner = (centers * self.features[rows, None]).sum(2).max(1)
            nearest = torch.arange(len(rows), device=rows.device), winner
            self.centers.append(centers[nearest])
            self.target_norms.append(norms[nearest])
            self.winners.append(winner)
            self.own_target.index_add_(0, rows, cosines)

    def _fold(self, softmax, number, block, weights):
        cosines, slopes, inverse_norms = self._cosines(number, block, weights)
        weighted = softmax.add(cosines, weights, slopes)
        if self.kept is not None:
            self.kept[number, block.start] = weighted, softmax.max, inverse_norms

    def _cosines(self, number, block, weights):
        """Cosines [R, K b] as the softmax sees them, -inf where it should not look, their slopes by the products of
        features and weights [K b, dim], and 1 / norm of the weights. What is hidden is hidden last: a margin may lift
        it again."""
        part, settings = self.columns[number], self.settings
        inverse_norms = weights.norm(dim=1, dtype=torch.float32).clamp_min_(1e-12).reciprocal_()
        vectors = products(self.features, weights, self._place(len(weights))).mul_(inverse_norms)
        slopes, cosines, winner = None, vectors, None
        if settings.sub_centers > 1:
            cosines, winner = vectors.view(len(vectors), -1, settings.sub_centers).max(2)
        near = cosines > settings.interclass_filter if settings.interclass_filter else None
        if self.margin.changes_negatives:
            cosines, slopes = self.margin.negatives(cosines, self.rows)
        if near is not None:
            cosines.masked_fill_(near, -torch.inf)
        part.targets.hide(cosines, block)
        if part.hidden is not None:
            part.hidden.hide(cosines, block)
        if winner is not None:
            each = vectors.fill_(-torch.inf).view(len(vectors), -1, settings.sub_centers)
            each.scatter_(2, winner[:, :, None], cosines[:, :, None])
            slopes = None if slopes is None else slopes.repeat_interleave(settings.sub_centers, 1)
        return vectors, inverse_norms if slopes is None else slopes.mul_(inverse_norms), inverse_norms

    def _place(self, width):
        """Memory for logits [R, width]: to stay in, unless what is kept of them is a copy in half precision."""
        shape = len(self.features), width
        if self._kept_memory is None:
            return self.workspace.take("logits", shape)
        cells = math.prod(shape)
        place, self._kept_memory = self._kept_memory[:cells], self._kept_memory[cells:]
        return place.view(shape)

    def _join(self, softmax):
        log_sum, target = join_ranks(softmax.max, softmax.sum, self.own_target)
        self.losses, self.log_sum, self.surplus = margin_cross_entropy(
            log_sum, target, self.margin, self.rows, self.settings.scale
        )
        self.grad = (softmax.max - self.log_sum).exp()[:, None] * softmax.pull
        for part, centers in zip(self.columns, self.centers, strict=True):
            self.grad.index_add_(0, part.targets.rows, self.surplus[part.targets.rows, None] * centers)
        self.grad *= self.factor
        self.value = self.losses.mean() * self.margin.loss_factor(self.settings.scale)
        self.norm_grad = self._by_norms(target) if self.margin.trains_norms else None

    def _by_norms(self, target):
        """Add the regulariser. Gradient [R, 1] of the loss by the norms, which all ranks have whole: a share of it."""
        added, slope = self.margin.regulariser(self.rows.norms)
        self.value = self.value + added.mean()
        grad = self.factor * torch.expm1(-self.losses) * self.margin.by_norm(target, self.rows) + slope / len(target)
        return (grad / world_size())[:, None]

    def loss(self, features: Tensor, norms: Tensor | None = None) -> Tensor:
        """Mean cross-entropy and what the margin adds, differentiable by features and norms [R, 1] (this rank's part
        of their gradients)."""
        return _WithGradient.apply(features, norms, self.value, self.grad, self.norm_grad)

    def class_gradient(self, number: int, block: slice, weights: Tensor) -> Tensor:
        """Gradient fp32 [b, K * dim] of the loss by `weights` [b, K * dim], the block of columns[number] as the loss
        saw it.

        It lies in the workspace: the next call overwrites it.
        """
        shape, weights = weights.shape, as_multiplied(weights, self.workspace).view(-1, self.dim)
        if self.kept is None:
            cosines, slopes, inverse_norms = self._cosines(number, block, weights)
            weighted = cosines.mul_(self.settings.scale).sub_(self.log_sum[:, None]).exp_().mul_(slopes)
            weighted, pulled = weighted.to(weights.dtype), self.pulled
        else:
            weighted, maximum, inverse_norms = self.kept[number, block.start]
            pulled = (maximum - self.log_sum).exp()[:, None] * self.pulled
        grad = self.workspace.take("grad", weights.shape)
        if weights.dtype == torch.float32:
            torch.mm(weighted.T, pulled, out=grad)
        else:
            grad.copy_(weighted.T @ pulled.to(weights.dtype))
        self._add_targets(grad, number, block)
        if not self.margin.unit_rows:
            # only what turns a class weight changes the cosines
            grad.addcmul_(weights, self.kernels.along(grad, weights, inverse_norms[:, None]), value=-1)
        return grad.view(shape)

    def _add_targets(self, grad, number, block):
        """What the rows whose class is in the block add to its gradient [K b, dim]."""
        targets = self.columns[number].targets
        inside = targets.inside(block)
        if inside.start < inside.stop:
            rows = targets.rows[inside]
            onto_targets = (self.surplus[rows] / self.target_norms[number][inside])[:, None] * self.pulled[rows]
            vectors = (targets.columns[inside] - block.start) * self.settings.sub_centers
            add_rows(grad, vectors + self.winners[number][inside], onto_targets)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, norms, loss, grad, norm_grad):
        ctx.save_for_backward(grad, norm_grad)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad, norm_grad = ctx.saved_tensors
        return grad * grad_loss, None if norm_grad is None else norm_grad * grad_loss, None, None, None
