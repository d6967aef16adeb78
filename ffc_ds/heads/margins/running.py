"""The numbers that some margins keep from step to step."""

from dataclasses import replace

import torch
from torch import Tensor

from ffc_ds.heads.margins.base import Margin, Rows


class RunningState:
    """`settled`: the state after the last applied step, float64 [n] on the device, the same on all ranks.

    Each micro-batch is worked out with the state that all rows of the step so far lead to, from `settled`. So the last
    one leaves what one batch of all rows would: accumulation changes no decay and no statistic, only that a micro-batch
    does not know of those after it.
    """

    def __init__(self, margin: Margin, device: torch.device):
        self.margin, self._seen = margin, []
        self.settled = self._latest = torch.tensor(list(margin.state.values()), dtype=torch.float64, device=device)

    def see(self, rows: Rows) -> Rows:
        """`rows` of a micro-batch with the state to use for them."""
        if not self.margin.state:
            return rows
        self._seen.append(self.margin.observed(rows))
        self._latest = self.margin.follow(self.settled, torch.cat(self._seen))
        return replace(rows, state=self._latest)

    def settle(self, applied: bool) -> None:
        """Close a step: keep what it led to, or take it back."""
        if applied:
            self.settled = self._latest
        self._latest = self.settled
        self._seen.clear()

    def load(self, state: Tensor) -> None:
        """Take over float64 [n]."""
        self.settled.copy_(state)
