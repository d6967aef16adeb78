"""SGD and AdamW on rows of a shard of class weights; the rows that are not named are not touched."""

import torch
from torch import Tensor

from ffc_ds.config.settings import ClassOptimConfig
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
        seed: int,
        unit_dim: int | None = None,
        first_row: int = 0,
    ):
        self.config, self.weights, self.workspace, self.seed, self.unit_dim = config, weights, workspace, seed, unit_dim
        on_host = config.memory == "host" and weights.device.type != "cpu"
        place = {"device": "cpu", "pin_memory": True} if on_host else {"device": weights.device}
        self.state = {name: torch.zeros(weights.shape, dtype=weights.dtype, **place) for name in self.slots}
        rounded = weights.dtype == torch.bfloat16
        self._round = StochasticRounding(("weights", *self.slots), weights.shape[1], workspace) if rounded else None
        self._first_row = first_row
        self.updates = 0

    def begin(self, step: int) -> None:
        """A step of the run is going to be applied."""
        self.updates += 1
        if self._round is not None:
            self._round.begin(self.seed, step)

    def read(self, name: str, rows: slice | Tensor) -> Tensor:
        """Rows of a state as fp32 [b, dim] on the device of the weights."""
        state = self.state[name]
        if isinstance(rows, slice):
            part = state[rows]
        elif state.device == self.weights.device:
            part = self.workspace.rows(name, state, rows)
        else:
            part = state[rows.to(state.device)]
        return part.to(self.weights.device, non_blocking=True).float()

    def write_weights(self, rows: slice | Tensor, weights: Tensor) -> None:
        """Put updated weights fp32 [b, dim] in their place; overwritten."""
        if self.unit_dim:
            unit_vectors_(weights, self.unit_dim)
        self._write("weights", self.weights, rows, weights)

    def write(self, name: str, rows: slice | Tensor, value: Tensor) -> None:
        """Put fp32 rows [b, dim] into a state, unless they are a part of it."""
        self._write(name, self.state[name], rows, value)

    def _write(self, name, tensor, rows, value):
        if self._round is not None:
            here = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop, device=value.device)
            value = self._round(name, value, here + self._first_row)
        if isinstance(rows, Tensor):
            tensor.index_copy_(0, rows.to(tensor.device), value.to(tensor.device, tensor.dtype))
        elif value.data_ptr() != tensor[rows].data_ptr():
            tensor[rows].copy_(value, non_blocking=True)


class RowSGD(_RowOptimizer):
    """velocity <- momentum * velocity + gradient + weight_decay * weights; weights <- weights - lr * velocity."""

    slots = ("velocity",)

    def update(self, rows: slice | Tensor, weights: Tensor, grad: Tensor, learning_rate: float) -> None:
        """One step of `rows` from their present `weights` and their `grad`, fp32 [b, dim], both overwritten."""
        velocity = self.read("velocity", rows)
        grad.add_(weights, alpha=self.config.weight_decay)
        torch.add(grad, velocity, alpha=self.config.momentum, out=velocity)
        weights.sub_(velocity, alpha=learning_rate)
        self.write("velocity", rows, velocity)
        self.write_weights(rows, weights)


class RowAdamW(_RowOptimizer):
    """AdamW (arXiv 1711.05101) with betas 0.9 and 0.999; bias is corrected by the number of applied steps."""

    slots = ("first_moment", "second_moment")
    betas, epsilon = (0.9, 0.999), 1e-8

    def update(self, rows: slice | Tensor, weights: Tensor, grad: Tensor, learning_rate: float) -> None:
        """One step of `rows` from their present `weights` and their `grad`, fp32 [b, dim], both overwritten."""
        first, second = (self.read(name, rows) for name in self.slots)
        first.lerp_(grad, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        corrected = [1 - beta**self.updates for beta in self.betas]
        weights.mul_(1 - learning_rate * self.config.weight_decay)
        spread = (second / corrected[1]).sqrt_().add_(self.epsilon)
        weights.addcdiv_(first, spread, value=-learning_rate / corrected[0])
        for name, value in zip(self.slots, (first, second), strict=True):
            self.write(name, rows, value)
        self.write_weights(rows, weights)


def unit_vectors_(weights: Tensor, dim: int) -> None:
    """Make unit vectors of the vectors of `dim` numbers of which the rows of `weights` are made, in place."""
    vectors = weights.view(-1, dim)
    vectors.div_(vectors.norm(dim=1, keepdim=True).clamp_min_(1e-12))


CLASS_OPTIMIZERS = {"sgd": RowSGD, "adamw": RowAdamW}
