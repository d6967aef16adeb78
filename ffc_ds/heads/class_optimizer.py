"""SGD and AdamW on rows of a shard of class weights; the rows that are not named are not touched."""

import numpy as np
import torch
from torch import Tensor

from ffc_ds.config.settings import ClassOptimConfig
from ffc_ds.distributed import to_device
from ffc_ds.heads.row_kernels import RowKernels
from ffc_ds.heads.stochastic_rounding import StochasticRounding
from ffc_ds.heads.workspace import Workspace


class _RowOptimizer:
    """State of the shape of the class weights: fp32 or, with the weights, bf16; on the device or in host memory.

    bf16 rows are rounded stochastically, by `seed`, step and row of all ranks.

    unit_dim: rows are made of vectors of so many numbers that are made unit vectors after each update, if it is given.
    first_row: the row of all ranks that is the first one here.
    """

    slots: tuple[str, ...] = ()

    def __init__(
        self,
        config: ClassOptimConfig,
        weights: Tensor,
        workspace: Workspace,
        kernels: RowKernels,
        seed: int,
        unit_dim: int | None = None,
        first_row: int = 0,
    ):
        self.config, self.weights, self.workspace, self.seed, self.unit_dim = config, weights, workspace, seed, unit_dim
        self.kernels = kernels
        self.on_host = config.memory == "host" and weights.device.type != "cpu"
        place = {"device": "cpu", "pin_memory": True} if self.on_host else {"device": weights.device}
        self.state = {name: torch.zeros(weights.shape, dtype=weights.dtype, **place) for name in self.slots}
        rounded, tensors = weights.dtype == torch.bfloat16, 1 + len(self.slots)
        self._rounding = StochasticRounding(tensors, weights.shape[1], weights.device) if rounded else None
        self._first_row = first_row
        self.updates = 0

    def begin(self, step: int, learning_rate: float) -> None:
        """A step of the run is going to be applied."""
        self.updates += 1
        if self._rounding is not None:
            self._rounding.begin(self.seed, step)
        # tensors, so that what is compiled stays as it is
        self._hyper = to_device(np.array(self._hyper_parameters(learning_rate), np.float32), self.weights.device)

    def _hyper_parameters(self, learning_rate: float) -> list[float]:
        """What changes from step to step, the learning rate first."""
        return [learning_rate]

    def update(self, rows: slice | Tensor, weights: Tensor, grad: Tensor) -> None:
        """One step of `rows` from their `grad`, fp32 [b, n], which is overwritten, and their `weights`: where they lie
        if `rows` is a slice, otherwise a copy, which is overwritten."""
        state = {name: self._read(name, rows) for name in self.slots}
        self._compute(grad, weights, state, self._words(rows))
        for name, value in state.items():
            _write(self.state[name], rows, value)
        _write(self.weights, rows, weights)

    def _read(self, name: str, rows: slice | Tensor) -> Tensor:
        """Rows of a state [b, n] on the device of the weights: itself, or a copy."""
        state = self.state[name]
        if isinstance(rows, slice):
            part = state[rows]
        elif state.device == self.weights.device:
            part = self.workspace.rows(name, state, rows)
        else:
            part = state[rows.to(state.device)]
        return part.to(self.weights.device, non_blocking=True)

    def _words(self, rows: slice | Tensor) -> tuple:
        """For weights and state, if they are to be rounded."""
        if self._rounding is None:
            return (None,) * (1 + len(self.slots))
        here = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop, device=self.weights.device)
        return self._rounding.words(here + self._first_row)


class RowSGD(_RowOptimizer):
    """`row_kernels.sgd`"""

    slots = ("velocity",)

    def _compute(self, grad, weights, state, words):
        hyper = self._hyper[0], self.config.momentum, self.config.weight_decay, self.unit_dim
        self.kernels.sgd(grad, weights, *state.values(), words, *hyper)


class RowAdamW(_RowOptimizer):
    """`row_kernels.adamw` with betas 0.9 and 0.999; bias is corrected by the number of applied steps."""

    slots = ("first_moment", "second_moment")
    betas = (0.9, 0.999)

    def _hyper_parameters(self, learning_rate):
        return [learning_rate, *(1 - beta**self.updates for beta in self.betas)]

    def _compute(self, grad, weights, state, words):
        hyper = self._hyper[0], self._hyper[1:], self.betas, self.config.weight_decay, self.unit_dim
        self.kernels.adamw(grad, weights, *state.values(), words, *hyper)


def _write(whole: Tensor, rows: slice | Tensor, value: Tensor) -> None:
    """Put rows into their place, unless they are there."""
    if isinstance(rows, Tensor):
        whole.index_copy_(0, rows.to(whole.device), value.to(whole.device))
    elif value.data_ptr() != whole[rows].data_ptr():
        whole[rows].copy_(value, non_blocking=True)


CLASS_OPTIMIZERS = {"sgd": RowSGD, "adamw": RowAdamW}
