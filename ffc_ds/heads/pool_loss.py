"""The loss of one pass of FFC: probes against the columns of the pool that this rank owns, with its gradient.

K cosine matrices are compared, but they differ only in the columns hit in this pass. So the common columns are walked
once (`softmax.OnlineSoftmax`, `hard_negatives.HardNegatives`) and the few special ones are worked out K times.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ffc_ds.distributed import all_reduce, to_device
from ffc_ds.heads.hard_negatives import HardNegatives, largest_of_all_ranks
from ffc_ds.heads.margins import Margin, Rows
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


@dataclass(frozen=True)
class PoolColumns:
    """What one pass compares with: this rank's slots start .. start + c."""

    weights: Tensor  # [c, dim] row 0 of each slot
    special: np.ndarray  # int64 [s], ascending: the columns of this rank in which the K matrices may differ
    variants: Tensor  # [K, s, dim] what each matrix has in these columns
    start: int


@dataclass(frozen=True)
class PoolLossSettings:
    """margin: one of `config.margins.OF_LRU`; hard_negatives: h; fresh_weight: factor on the fresh-identity term."""

    margin: Margin
    scale: float
    hard_negatives: int
    fresh_weight: float
    workspace_bytes: int


def pool_loss(
    probes: Tensor,
    slots: np.ndarray,
    hit: np.ndarray,
    columns: PoolColumns,
    settings: PoolLossSettings,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of a pass, and detached: its existing-identity term and its fresh-identity term (unweighted).

    probes: unit features fp32 [B, dim], equal on all ranks; slots: int64 [B] of the probes' identities, -1 where the
    identity is not pooled; hit: the special columns of all ranks as slots. The gradient that reaches `probes` is this
    rank's part of it.
    """
    return _PoolLoss.apply(probes, slots, hit, columns, settings, workspace)


class _PoolLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, probes, slots, hit, columns, settings, workspace):
        existing, fresh = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
        order = to_device(np.concatenate([existing, fresh]), probes.device)
        pass_ = _Pass(probes[order], slots[existing], len(fresh), np.isin(slots[existing], hit), columns, settings)
        pass_.walk_common_columns(workspace)
        existing_loss, existing_grad = pass_.existing_term()
        fresh_loss, fresh_grad = pass_.fresh_term()
        grad = torch.empty_like(probes)
        grad[order] = torch.cat([existing_grad, fresh_grad * settings.fresh_weight])
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(existing_loss, fresh_loss)
        return existing_loss + settings.fresh_weight * fresh_loss, existing_loss, fresh_loss

    @staticmethod
    def backward(ctx, grad_loss, *_):
        return (ctx.saved_tensors[0] * grad_loss, None, None, None, None, None)


class _Pass:
    """Probes of existing identities first, then those of fresh ones."""

    def __init__(self, probes, slots, fresh, target_is_special, columns, settings):
        self.probes, self.columns, self.settings = probes, columns, settings
        self.device, self.matrices = probes.device, len(columns.variants)
        self.variants = columns.variants.to(product_type(columns.weights))
        self.existing, self.fresh = len(slots), fresh
        self._find_targets(slots)
        self._share_rows(target_is_special)

    def _find_targets(self, slots):
        """Cosines of the existing probes with their own class in each matrix, [K, E], 0 where another rank has it."""
        column = slots - self.columns.start
        self.owned = np.flatnonzero((column >= 0) & (column < len(self.columns.weights)))
        self.column = column[self.owned]
        special = np.isin(self.column, self.columns.special)
        place = np.searchsorted(self.columns.special, self.column[special])
        self.special_targets = Cells(place, self.device, self.owned[special])
        self.own_rows = to_device(self.owned, self.device)
        centers = self.columns.weights[to_device(self.column, self.device)].float()
        self.centers = centers.expand(self.matrices, -1, -1).clone()
        varying = to_device(np.flatnonzero(special), self.device)
        self.centers[:, varying] = self.variants[:, to_device(place, self.device)].float()
        cosines = torch.zeros(self.matrices, self.existing, device=self.device)
        cosines[:, self.own_rows] = (self.centers * self.probes[self.own_rows]).sum(2)
        self.own_target = cosines
        if self.settings.margin.changes_negatives:
            self.target = all_reduce(cosines.clone())

    def _share_rows(self, target_is_special):
        """Rows of statistics over the common columns. Matrices share them, unless the margin bends negatives by the
        target and the target differs: `source` [R] is the probe of a row, `row` [K, E] the row that a matrix reads."""
        row = np.tile(np.arange(self.existing), (self.matrices, 1))
        source = [np.arange(self.existing)]
        if self.settings.margin.changes_negatives:
            varying = np.flatnonzero(target_is_special)
            for matrix in range(1, self.matrices):
                row[matrix, varying] = len(varying) * (matrix - 1) + self.existing + np.arange(len(varying))
                source.append(varying)
            varying = to_device(varying, self.device)
            self.target_of_row = torch.cat([self.target[0], self.target[1:, varying].flatten()])
        self.source = to_device(np.concatenate(source), self.device)
        self.row = to_device(row, self.device)

    def walk_common_columns(self, workspace):
        weights, special = self.columns.weights, self.columns.special
        (rows, dim), margin = self.probes.shape, self.settings.margin
        self.softmax = OnlineSoftmax(len(self.source), dim, self.settings.scale, self.device)
        self.hardest = HardNegatives(self.fresh, self.settings.hard_negatives, self.device)
        probes = self.probes.to(self.variants.dtype)
        targets, worked_out_later = Cells(self.column, self.device, self.owned), Cells(special, self.device)
        bent = (4 + margin.bytes_a_cell) if margin.changes_negatives else 0
        column_bytes = rows * cell_bytes(self.variants.dtype) + len(self.source) * bent
        width = block_width(column_bytes, dim, self.settings.workspace_bytes, self.device)
        for block in column_blocks(len(weights), width):
            part = as_multiplied(weights[block], workspace)
            cosines = products(probes, part, workspace.take("cosines", (rows, len(part))))
            targets.hide(cosines, block)
            worked_out_later.hide(cosines, block)
            self.hardest.add(cosines[self.existing :], block.start)
            self._add_existing(cosines[: self.existing], part)

    def _add_existing(self, cosines, weights):
        if not self.settings.margin.changes_negatives:
            return self.softmax.add(cosines, weights)
        cosines, slopes = self.settings.margin.negatives(cosines[self.source], Rows(self.target_of_row))
        return self.softmax.add(cosines, weights, slopes)

    def existing_term(self) -> tuple[Tensor, Tensor]:
        """Sum over matrices of the mean cross-entropy, and this rank's part of its gradient [E, dim]."""
        scale, margin = self.settings.scale, self.settings.margin
        if not self.existing:
            return self.probes.new_zeros(()), self.probes[:0]
        special = [self._special_softmax(matrix) for matrix in range(self.matrices)]
        special_max, special_sum = (torch.stack([getattr(s, name) for s in special]) for name in ("max", "sum"))
        common_max, common_sum = self.softmax.max[self.row], self.softmax.sum[self.row]
        maximum = torch.maximum(common_max, special_max)
        total = common_sum * (common_max - maximum).exp() + special_sum * (special_max - maximum).exp()
        log_sum, target = join_ranks(maximum, total, self.own_target)
        losses, log_sum, surplus = margin_cross_entropy(log_sum, target, margin, Rows(), scale)

        grad = torch.zeros(self.existing, self.probes.shape[1], device=self.device)
        share = (common_max - log_sum).exp()
        if margin.changes_negatives:
            shares = torch.zeros_like(self.softmax.max)
            add_rows(shares, self.row.flatten(), share.flatten())
            add_rows(grad, self.source, shares[:, None] * self.softmax.pull)
        else:
            grad += share.sum(0)[:, None] * self.softmax.pull
        for matrix, softmax in enumerate(special):
            grad += (special_max[matrix] - log_sum[matrix]).exp()[:, None] * softmax.pull
        grad.index_add_(0, self.own_rows, (surplus[:, self.own_rows, None] * self.centers).sum(0))
        return losses.mean(1).sum(), grad * (scale / self.existing)

    def _special_softmax(self, matrix) -> OnlineSoftmax:
        variants = self.variants[matrix]
        softmax = OnlineSoftmax(self.existing, self.probes.shape[1], self.settings.scale, self.device)
        cosines = (self.probes[: self.existing].to(variants.dtype) @ variants.T).float()
        self.special_targets.hide(cosines, slice(0, len(variants)))
        slopes = None
        if self.settings.margin.changes_negatives:
            cosines, slopes = self.settings.margin.negatives(cosines, Rows(self.target[matrix]))
        softmax.add(cosines, variants, slopes)
        return softmax

    def fresh_term(self) -> tuple[Tensor, Tensor]:
        """Sum over matrices of the mean of the h largest cosines clipped at 0, and this rank's part of its gradient
        [F, dim]."""
        h, probes = self.settings.hard_negatives, self.probes[self.existing :]
        if not self.fresh:
            return self.probes.new_zeros(()), probes
        special = (probes.to(self.variants.dtype) @ self.variants.transpose(1, 2)).float()
        candidates = torch.cat([self.hardest.values.expand(self.matrices, -1, -1), special], 2)
        chosen = largest_of_all_ranks(candidates, h)
        counted = (chosen & (candidates > 0)).float()
        loss = all_reduce((counted * candidates.clamp_min(0)).sum()) / (self.fresh * h)
        common, special = counted.split([h, special.shape[2]], 2)
        grad = torch.einsum("kfs,ksd->fd", special, self.variants.float())
        for column in range(h if len(self.columns.weights) else 0):
            centers = self.columns.weights[self.hardest.columns[:, column]].float()
            grad.addcmul_(common.sum(0)[:, column, None], centers)
        return loss, grad / (self.fresh * h)
