"""Relatives of the pool of K features a slot: the features of a slot joined to one class center."""

import torch
import torch.nn.functional as F
from torch import Tensor


def join(rows: Tensor, written: Tensor, newest: Tensor, how: str) -> Tensor:
    """Centers [s, dim] of unit features `rows` [K, s, dim], of which the first `written` int64 [s] count.

    "mean": their mean. "attention": weighted by a softmax over their cosines with the feature in row `newest`
    int64 [s] (after AttFC, arXiv 2503.06839, which weighs two features by their cosines with the probe). Unit length.
    """
    rows = rows.float()
    counts = torch.arange(len(rows), device=rows.device)[:, None] < written
    scores = torch.zeros(counts.shape, device=rows.device)
    if how == "attention":
        query = rows[newest, torch.arange(rows.shape[1], device=rows.device)]
        scores = torch.linalg.vecdot(rows, query)
    weights = scores.masked_fill(~counts, -torch.inf).softmax(0)
    return F.normalize((weights[:, :, None] * rows).sum(0), dim=-1)
