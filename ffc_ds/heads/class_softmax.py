"""Margin softmax against trained class weights: the loss now, the gradient of the class weights when they are updated.

The gradient of a block of class weights is worked out when that block is updated and never exists for all of them. A
refused step costs nothing: nothing was changed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffc_ds.distributed import all_reduce
from ffc_ds.heads.softmax import (
    SLOPE_BYTES,
    Cells,
    OnlineSoftmax,
    add_rows,
    block_width,
    cell_bytes,
    column_blocks,
    join_ranks,
    margin_cross_entropy,
    products,
)
from ffc_ds.heads.workspace import Workspace


@dataclass(frozen=True)
class Columns:
    """Class weights that a micro-batch is compared with, of any length: `weights` [n, dim] or their `rows` (int64 [m]).

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
        """Their weights [b, dim]: the class state itself where they lie side by side, otherwise a copy."""
        if self.rows is None:
            return self.weights[block]
        return workspace.rows("weights", self.weights, self.rows[block])


@dataclass(frozen=True)
class ClassSoftmaxSettings:
    """margin: one of `margins`; interclass_filter: 0, or the cosine beyond which other classes are left out;
    workspace_bytes: for the logits of a micro-batch."""

    margin: object
    scale: float
    interclass_filter: float
    workspace_bytes: int


class ClassSoftmax:
    """Micro-batch `number` of a step: unit features fp32 [R, dim], equal on all ranks, and the columns that this rank
    holds. Its logits are kept for the class gradient if they fit the workspace, otherwise worked out again."""

    def __init__(
        self,
        features: Tensor,
        columns: list[Columns],
        settings: ClassSoftmaxSettings,
        workspace: Workspace,
        number: int,
    ):
        self.features, self.columns, self.settings, self.workspace = features, columns, settings, workspace
        rows, dim = features.shape
        self.pulled = features * (settings.scale / rows)
        dtype, logits = columns[0].weights.dtype, rows * sum(map(len, columns))
        bent = SLOPE_BYTES if settings.margin.changes_negatives else int(settings.interclass_filter > 0)
        column_bytes = rows * (cell_bytes(dtype) + bent)
        # a quarter for the block that is worked on, so that more than one can be kept
        self.width = block_width(column_bytes, dim, settings.workspace_bytes // 4, features.device)
        fits = dtype.itemsize * logits + self.width * column_bytes <= settings.workspace_bytes
        self.kept = {} if fits else None
        self._kept_memory = workspace.take(("logits", number), (logits,)) if fits and dtype == torch.float32 else None
        self._find_targets()
        softmax = OnlineSoftmax(rows, dim, settings.scale, features.device)
        for number, part in enumerate(columns):
            for block in self.blocks(number):
                self._fold(softmax, number, block, part.block(block, workspace))
        self._join(softmax)

    def blocks(self, number: int) -> Iterator[slice]:
        """How columns[number] is walked, alike in all micro-batches of a step."""
        return column_blocks(len(self.columns[number]), self.width)

    def _find_targets(self):
        """Cosines of the rows with their own class, 0 where another rank has it; the owner keeps that class center."""
        self.own_target = torch.zeros(len(self.features), device=self.features.device)
        self.centers, self.target_norms = [], []
        for part in self.columns:
            rows, columns = part.targets.rows, part.targets.columns
            weights = part.weights[columns if part.rows is None else part.rows[columns]].float()
            norms = weights.norm(dim=1).clamp_min(1e-12)
            self.centers.append(weights / norms[:, None])
            self.target_norms.append(norms)
            self.own_target.index_add_(0, rows, (self.centers[-1] * self.features[rows]).sum(1))
        if self.settings.margin.changes_negatives:
            self.target = all_reduce(self.own_target.clone())

    def _fold(self, softmax, number, block, weights):
        cosines, slopes, inverse_norms = self._cosines(number, block, weights)
        weighted = softmax.add(cosines, weights, slopes)
        if self.kept is not None:
            self.kept[number, block.start] = weighted, softmax.max, inverse_norms

    def _cosines(self, number, block, weights):
        """Cosines [R, b] as the softmax sees them, -inf where it should not look, their slopes by the products of
        features and weights, and 1 / norm of the weights."""
        part, settings = self.columns[number], self.settings
        inverse_norms = weights.norm(dim=1, dtype=torch.float32).clamp_min_(1e-12).reciprocal_()
        cosines = products(self.features, weights, self._place(len(weights))).mul_(inverse_norms)
        part.targets.hide(cosines, block)
        if part.hidden is not None:
            part.hidden.hide(cosines, block)
        if settings.interclass_filter:
            cosines.masked_fill_(cosines > settings.interclass_filter, -torch.inf)
        slopes = inverse_norms
        if settings.margin.changes_negatives:
            cosines, slopes = settings.margin.negatives(cosines, self.target)
            slopes.mul_(inverse_norms)
        return cosines, slopes, inverse_norms

    def _place(self, width):
        """Memory for logits [R, width]: to stay in, unless what is kept of them is a copy in half precision."""
        shape = len(self.features), width
        if self._kept_memory is None:
            return self.workspace.take("logits", shape)
        cells = math.prod(shape)
        place, self._kept_memory = self._kept_memory[:cells], self._kept_memory[cells:]
        return place.view(shape)

    def _join(self, softmax):
        scale = self.settings.scale
        log_sum, target = join_ranks(softmax.max, softmax.sum, self.own_target)
        self.losses, self.log_sum, self.surplus = margin_cross_entropy(log_sum, target, self.settings.margin, scale)
        self.grad = (softmax.max - self.log_sum).exp()[:, None] * softmax.pull
        for part, centers in zip(self.columns, self.centers, strict=True):
            self.grad.index_add_(0, part.targets.rows, self.surplus[part.targets.rows, None] * centers)
        self.grad *= scale / len(self.features)

    def loss(self, features: Tensor) -> Tensor:
        """Mean cross-entropy, differentiable by the features (this rank's part of their gradient)."""
        return _WithGradient.apply(features, self.losses.mean(), self.grad)

    def class_gradient(self, number: int, block: slice, weights: Tensor) -> Tensor:
        """Gradient fp32 [b, dim] of the loss by `weights` [b, dim], the block of columns[number] as the loss saw it.

        It lies in the workspace: the next call overwrites it.
        """
        if self.kept is None:
            cosines, slopes, inverse_norms = self._cosines(number, block, weights)
            weighted = cosines.mul_(self.settings.scale).sub_(self.log_sum[:, None]).exp_().mul_(slopes)
            weighted, pulled = weighted.to(weights.dtype), self.pulled
        else:
            weighted, maximum, inverse_norms = self.kept[number, block.start]
            pulled = (maximum - self.log_sum).exp()[:, None] * self.pulled
        grad = self.workspace.take("grad", (len(weights), pulled.shape[1]))
        if weights.dtype == torch.float32:
            torch.mm(weighted.T, pulled, out=grad)
        else:
            grad.copy_(weighted.T @ pulled.to(weights.dtype))
        targets = self.columns[number].targets
        inside = targets.inside(block)
        if inside.start < inside.stop:
            rows = targets.rows[inside]
            onto_targets = (self.surplus[rows] / self.target_norms[number][inside])[:, None] * self.pulled[rows]
            add_rows(grad, targets.columns[inside] - block.start, onto_targets)
        # only what turns a class weight changes the cosines
        product = torch.mul(grad, weights, out=self.workspace.take("product", grad.shape))
        along = product.sum(1).mul_(inverse_norms.square())
        return grad.addcmul_(weights, along[:, None], value=-1)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, loss, grad):
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return ctx.saved_tensors[0] * grad_loss, None, None
