"""Virtual FC (Li, Wang and Zhang, CVPR 2021): a softmax over anchors, each of which stands for a group of identities.

In a batch an anchor can stand for one identity only: the first one of its group. It is regenerated, that is replaced by
the mean of this identity's features in the batch. Every further identity of the group borrows, for this batch, an
anchor that no identity of it needs. So batches should hold several images of an identity (data.loader id,
data.images_per_identity). Regenerated anchors stay and are trained with the others; borrowed ones go back as they were.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.data.randomness import mix, permute
from ffc_ds.distributed import to_device
from ffc_ds.errors import shared
from ffc_ds.heads.class_softmax import Columns
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.heads.softmax import Cells, add_rows


@dataclass(frozen=True)
class Lease:
    """Who has which anchor in a micro-batch: anchor and whether it is `home` rather than borrowed, by identity [u], and
    the identity [R] (0 .. u - 1) of each row."""

    anchor: np.ndarray
    home: np.ndarray
    identity: np.ndarray


def lease_anchors(labels: np.ndarray, anchors: int, key: int) -> Lease:
    """Identities `labels` int64 [R] to anchors; identity i is of the group of anchor i mod `anchors`.

    Borrowed anchors are drawn at random, by `key`. Raises UserError, on all ranks, for more identities than anchors.
    """
    distinct, first, identity = np.unique(labels, return_index=True, return_inverse=True)
    if len(distinct) > anchors:
        raise shared(
            f"a micro-batch shows {len(distinct)} identities, and there are {anchors} anchors, of which each stands "
            "for one at a time: lower head.group_identities, or show more images of fewer identities (in_batch)."
        )
    group = distinct % anchors
    in_order = np.argsort(first)
    home = np.zeros(len(distinct), bool)
    home[in_order[np.unique(group[in_order], return_index=True)[1]]] = True
    candidates = permute(np.arange(min(anchors, 2 * len(distinct))), anchors, key)
    free = candidates[~np.isin(candidates, group)]
    group[~home] = free[: np.count_nonzero(~home)]
    return Lease(group, home, identity)


class VirtualFC(FullFC):
    """`classes` counts the anchors. Columns 0 are the anchors nobody has in this micro-batch, columns 1 the generated
    ones, each with the rank that owns the anchor."""

    rows_of_identities = False

    def prefill(self, identities, gallery):
        """Nothing: anchors are made of the features of a batch."""

    def _columns(self, labels, features):
        device = self.weights.device
        lease = lease_anchors(labels, self.classes, mix(self.seed, self.steps, len(self.micro_batches)))
        own = np.flatnonzero((lease.anchor >= self.start) & (lease.anchor < self.end))
        own = own[np.argsort(lease.anchor[own])]
        anchors = lease.anchor[own] - self.start
        rows = np.flatnonzero(np.isin(lease.identity, own))
        column = np.empty(len(lease.anchor), np.int64)
        column[own] = np.arange(len(own))
        targets = Cells(column[lease.identity[rows]], device, rows)
        generated = torch.zeros(len(own), features.shape[1], device=device)
        add_rows(generated, targets.columns, features[targets.rows])
        generated = F.normalize(generated, dim=1)
        none = np.empty(0, np.int64)
        return [
            Columns(self.weights, Cells(none, device, none), hidden=Cells(anchors, device)),
            Columns(generated.to(self.weights), targets, host_rows=np.where(lease.home[own], anchors, -1)),
        ]

    def _gradients(self):
        homes, centers, home_grads = self._regenerated()
        for block in self.micro_batches[0].blocks(0):
            weights = self.weights[block]
            grad = self._mean_gradient(0, block, weights)
            inside = homes.inside(block)
            if inside.start < inside.stop:
                rows = homes.columns[inside] - block.start
                weights[rows] = centers[inside]
                grad.index_add_(0, rows, home_grads[inside])
            yield block, weights, grad

    def _regenerated(self) -> tuple[Cells, Tensor, Tensor]:
        """Anchors that stay regenerated, each once, their new values (of the last micro-batch) and mean gradients."""
        parts = [micro.columns[1] for micro in self.micro_batches]
        anchors = np.concatenate([part.host_rows for part in parts])
        kept = np.flatnonzero(anchors >= 0)
        distinct, place = np.unique(anchors[kept], return_inverse=True)
        latest = np.zeros(len(distinct), np.int64)
        np.maximum.at(latest, place, kept)
        device = self.weights.device
        centers = torch.cat([part.weights for part in parts])
        grads = [
            micro.class_gradient(1, block, part.weights[block]).clone()
            for micro, part in zip(self.micro_batches, parts, strict=True)
            for block in micro.blocks(1)
        ]
        grad = torch.zeros(len(distinct), self.weights.shape[1], device=device)
        if grads:
            add_rows(grad, to_device(place, device), torch.cat(grads)[to_device(kept, device)])
        return Cells(distinct, device), centers[to_device(latest, device)], grad.div_(len(parts))
