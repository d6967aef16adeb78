"""Full softmax with the classes sharded over ranks: model-parallel FC, the reference for every other system."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.heads.base import Shard
from ffc_ds.heads.class_head import ClassHead
from ffc_ds.heads.class_optimizer import CLASS_OPTIMIZERS
from ffc_ds.heads.class_softmax import Columns
from ffc_ds.heads.softmax import Cells, product_type

TRIAL_ROWS = 8


class FullFC(ClassHead):
    """Every step compares with all classes and trains all."""

    def __init__(
        self,
        config: HeadConfig,
        optim: ClassOptimConfig,
        classes: int,
        dim: int,
        device: torch.device,
        seed: int = 0,
        accumulation: int = 1,
    ):
        super().__init__(config, classes, dim, device, seed, accumulation)
        self.dim = dim
        kind = CLASS_OPTIMIZERS[optim.name]
        self.optimizer = kind(optim, self.weights, self.workspace, self.kernels, seed, self.unit_dim, self.start)
        self.lr_factor = optim.lr_factor

    def step(self, applied, learning_rate):
        if applied:
            self.optimizer.begin(self.steps, learning_rate * self.lr_factor)
            for rows, weights, grad in self._gradients():
                self.optimizer.update(rows, weights, grad)
        super().step(applied, learning_rate)

    def compile(self):
        if self.unit_dim is None or self.weights.is_cuda:  # torch 2.13 cannot compile unit rows for a CPU
            self.kernels.compile(self._trial)

    def _trial(self):
        """An update of rows side by side, and one of scattered ones, as of the class state."""
        device = self.weights.device
        weights = torch.zeros(TRIAL_ROWS, self.weights.shape[1], dtype=self.weights.dtype, device=device)
        about = self.optimizer.config, weights, self.workspace, self.kernels, self.seed, self.unit_dim
        optimizer = type(self.optimizer)(*about)
        optimizer.begin(0, 0.1)
        for rows in (slice(0, TRIAL_ROWS), torch.arange(TRIAL_ROWS, device=device)):
            vectors = weights[rows].view(-1, self.dim).to(product_type(weights))
            grad = torch.zeros(vectors.shape, device=device)
            self.kernels.along(grad, vectors, torch.ones(len(vectors), 1, device=device))
            optimizer.update(rows, weights[rows], grad.view(weights.shape))

    def _columns(self, labels, features):
        own = np.flatnonzero((labels >= self.start) & (labels < self.end))
        return [Columns(self.weights, Cells(labels[own] - self.start, self.weights.device, own))]

    def _gradients(self) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
        """Rows to train, their weights, a copy unless they lie side by side, and their gradients, fp32; [b, K * dim]
        each."""
        for block in self.micro_batches[0].blocks(0):
            weights = self.weights[block]
            yield block, weights, self._mean_gradient(0, block, weights)

    def _mean_gradient(self, number: int, block: slice, weights: Tensor) -> Tensor:
        """Over the micro-batches, for a block of their columns[number]."""
        if len(self.micro_batches) == 1:
            return self.micro_batches[0].class_gradient(number, block, weights)
        total = torch.zeros(weights.shape, device=weights.device)
        for micro in self.micro_batches:
            total += micro.class_gradient(number, block, weights)
        return total.div_(len(self.micro_batches))

    def take_rows(self, rows, state, rescaled):
        super().take_rows(rows, state, rescaled)
        for name in self.optimizer.state.keys() & state.keys():
            own = self.optimizer.state[name]
            own.index_copy_(0, rows.to(own.device), state[name].to(own.device, own.dtype))

    def take_updates(self, updates):
        self.optimizer.updates = updates

    def shards(self):
        if self.optimizer.on_host:  # to which the last rows may be on their way
            torch.cuda.synchronize(self.weights.device)
        state = {name: Shard(tensor, dim=0, length=self.classes) for name, tensor in self.optimizer.state.items()}
        return super().shards() | state

    def host_state(self):
        return super().host_state() | {"updates": np.array(self.optimizer.updates)}

    def load_host_state(self, state):
        super().load_host_state(state)
        self.optimizer.updates = int(state["updates"])
