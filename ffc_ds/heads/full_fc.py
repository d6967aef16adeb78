"""Full softmax with the classes sharded over ranks: model-parallel FC, the reference for every other system.

ArcFace (arXiv 1801.07698, section 2.2) describes the sharding; the margin is that of `margins.py`.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ffc_ds.config import HeadConfig
from ffc_ds.distributed import all_reduce, gather_views, rank, shard_bounds, to_device, world_size
from ffc_ds.heads.base import Head, Shard
from ffc_ds.heads.margins import make_margin
from ffc_ds.heads.softmax import OnlineSoftmax, column_blocks, join_ranks

INIT_BLOCK = 4096


class FullFC(Head):
    """One weight vector an identity, [own classes, dim] fp32 on each rank, trained by SGD with momentum."""

    momentum, weight_decay = 0.9, 5e-4  # those of the published ArcFace and Partial FC

    def __init__(self, config: HeadConfig, identities: int, dim: int, device: torch.device, seed: int = 0):
        self.identities = identities
        self.start, self.end = shard_bounds(identities, rank(), world_size())
        self.weights = torch.empty(self.end - self.start, dim, device=device)
        self._initialise(seed)
        self.velocity = torch.zeros_like(self.weights)
        self.grad = torch.zeros_like(self.weights)
        self.micro_batches = 0
        self.scale = 64.0 if config.scale is None else config.scale
        self.margin = make_margin(config.margin, config.margin_strength)
        self.workspace_bytes = config.workspace_mb << 20

    def loss(self, probe, identities, gallery=None):
        """See `Head.loss`; the two views are one batch."""
        features = gather_views(F.normalize(probe.float(), dim=-1)).flatten(0, 1)
        loss = _FullSoftmax.apply(features, identities.reshape(-1), self)
        self.micro_batches += 1
        return loss, {}

    def step(self, applied, learning_rate):
        if applied:
            self.grad.div_(self.micro_batches).add_(self.weights, alpha=self.weight_decay)
            self.velocity.mul_(self.momentum).add_(self.grad)
            self.weights.sub_(self.velocity, alpha=learning_rate)
        self.grad.zero_()
        self.micro_batches = 0

    def shards(self):
        return {
            "weights": Shard(self.weights, dim=0, length=self.identities),
            "velocity": Shard(self.velocity, dim=0, length=self.identities),
        }

    def _initialise(self, seed):
        """N(0, 0.01), the same on any number of ranks."""
        for first in range(self.start // INIT_BLOCK * INIT_BLOCK, self.end, INIT_BLOCK):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + first // INIT_BLOCK)
            block = 0.01 * torch.randn(INIT_BLOCK, self.weights.shape[1], generator=generator)
            begin, end = max(first, self.start), min(first + INIT_BLOCK, self.end)
            self.weights[begin - self.start : end - self.start] = block[begin - first : end - first].to(self.weights)


class _FullSoftmax(torch.autograd.Function):
    """Mean cross-entropy over the global batch; the gradient of the weights goes to `head.grad` at once."""

    @staticmethod
    def forward(ctx, features, labels, head):
        device, rows = features.device, len(labels)
        column = labels - head.start
        owned = np.flatnonzero((column >= 0) & (column < len(head.weights)))
        by_column = owned[np.argsort(column[owned], kind="stable")]
        own_rows, own_columns = to_device(by_column, device), to_device(column[by_column], device)
        centers = F.normalize(head.weights[own_columns], dim=-1)
        target = torch.zeros(rows, device=device)
        target[own_rows] = (centers * features[own_rows]).sum(1)
        all_reduce(target)
        value, slope = head.margin.target(target)

        blocks = _Blocks(features, head, target, by_column, column[by_column])
        softmax = OnlineSoftmax(rows, features.shape[1], head.scale, device)
        for _, unit, cosines, slopes in blocks:
            softmax.add(cosines, unit, slopes)
        log_sum = torch.logaddexp(join_ranks(softmax.max, softmax.sum), head.scale * value)
        surplus = ((head.scale * value - log_sum).exp() - 1) * slope
        grad = (softmax.max - log_sum).exp()[:, None] * softmax.pull
        grad.index_add_(0, own_rows, surplus[own_rows, None] * centers)
        ctx.save_for_backward(grad * (head.scale / rows))

        pulled = features * (head.scale / rows)
        for block, unit, cosines, slopes in blocks:
            share = cosines.mul_(head.scale).sub_(log_sum[:, None]).exp_()
            _add_weight_gradient(head, block, unit, (share if slopes is None else share * slopes).T @ pulled)
        onto_targets = surplus[own_rows, None] * pulled[own_rows]
        norms = head.weights[own_columns].norm(dim=1, keepdim=True).clamp_min(1e-12)
        onto_targets -= (onto_targets * centers).sum(1, keepdim=True) * centers
        head.grad.index_add_(0, own_columns, onto_targets / norms)
        return (log_sum - head.scale * value).mean()

    @staticmethod
    def backward(ctx, grad_loss):
        return ctx.saved_tensors[0] * grad_loss, None, None


class _Blocks:
    """Walks over this rank's classes: slice, unit weights, cosines with the target cells left out, slopes."""

    def __init__(self, features, head, target, rows, columns):
        self.features, self.head, self.target, self.rows, self.columns = features, head, target, rows, columns

    def __iter__(self):
        head, margin = self.head, self.head.margin
        for start, end in column_blocks(len(head.weights), len(self.features), head.workspace_bytes):
            unit = F.normalize(head.weights[start:end], dim=-1)
            cosines = self.features @ unit.T
            inside = slice(*np.searchsorted(self.columns, (start, end)))
            cells = self.rows[inside] * (end - start) + self.columns[inside] - start
            cosines.view(-1).index_fill_(0, to_device(cells, cosines.device), -torch.inf)
            slopes = None
            if margin.changes_negatives:
                cosines, slopes = margin.negatives(cosines, self.target)
            yield slice(start, end), unit, cosines, slopes


def _add_weight_gradient(head, block, unit, onto_unit):
    """Through the normalisation of the weights."""
    norms = head.weights[block].norm(dim=1, keepdim=True).clamp_min(1e-12)
    onto_unit -= (onto_unit * unit).sum(1, keepdim=True) * unit
    head.grad[block].add_(onto_unit / norms)
