"""Full softmax with the classes sharded over ranks: model-parallel FC, the reference for every other system.

ArcFace (arXiv 1801.07698, section 2.2) describes the sharding; the margins are those of `margins.py`.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import gather_views, rank, shard_bounds, world_size
from ffc_ds.heads.base import Head, Shard
from ffc_ds.heads.class_optimizer import make_class_optimizer
from ffc_ds.heads.class_softmax import ClassSoftmax, ClassSoftmaxSettings, Columns
from ffc_ds.heads.margins import make_margin
from ffc_ds.heads.seeded_blocks import BLOCK, seeded_blocks
from ffc_ds.heads.softmax import Cells
from ffc_ds.heads.workspace import Workspace


class FullFC(Head):
    """One weight vector a class, [own classes, dim] on each rank; every step compares with all and trains all."""

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
        self.config, self.classes, self.seed = config, classes, seed
        self.start, self.end = shard_bounds(classes, rank(), world_size())
        self.weights = torch.empty(self.end - self.start, dim, device=device, dtype=getattr(torch, config.dtype))
        self._initialise()
        self.workspace = Workspace(device)
        self.optimizer = make_class_optimizer(optim, self.weights, self.workspace, seed)
        self.lr_factor = optim.lr_factor
        self.settings = ClassSoftmaxSettings(
            make_margin(config),
            64.0 if config.scale is None else config.scale,
            config.interclass_filter,
            (config.workspace_mb << 20) // accumulation,
        )
        self.micro_batches: list[ClassSoftmax] = []
        self.steps = 0

    def loss(self, probe, identities, gallery=None):
        """See `Head.loss`; the two views are one batch."""
        features = gather_views(F.normalize(probe.float(), dim=-1)).flatten(0, 1)
        columns = self._columns(identities.reshape(-1), features.detach())
        number = len(self.micro_batches)
        softmax = ClassSoftmax(features.detach(), columns, self.settings, self.workspace, number)
        self.micro_batches.append(softmax)
        return softmax.loss(features), {}

    def step(self, applied, learning_rate):
        if applied:
            self.optimizer.begin(self.steps)
            for rows, weights, grad in self._gradients():
                self.optimizer.update(rows, weights, grad, learning_rate * self.lr_factor)
        self.micro_batches.clear()
        self.steps += 1

    def _columns(self, labels: np.ndarray, features: Tensor) -> list[Columns]:
        """What a micro-batch with these labels int64 [R] and features [R, dim] is compared with on this rank."""
        own = np.flatnonzero((labels >= self.start) & (labels < self.end))
        return [Columns(self.weights, Cells(labels[own] - self.start, self.weights.device, own))]

    def _gradients(self) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
        """Rows to train, their weights and their gradients, fp32 [b, dim]."""
        for block in self.micro_batches[0].blocks(0):
            weights = self.weights[block]
            yield block, weights.float(), self._mean_gradient(0, block, weights)

    def _mean_gradient(self, number: int, block: slice, weights: Tensor) -> Tensor:
        """Over the micro-batches, for a block of their columns[number]."""
        if len(self.micro_batches) == 1:
            return self.micro_batches[0].class_gradient(number, block, weights)
        total = torch.zeros(weights.shape, device=weights.device)
        for micro in self.micro_batches:
            total += micro.class_gradient(number, block, weights)
        return total.div_(len(self.micro_batches))

    def shards(self):
        tensors = {"weights": self.weights} | self.optimizer.state
        return {name: Shard(tensor, dim=0, length=self.classes) for name, tensor in tensors.items()}

    def host_state(self):
        return {"steps": np.array(self.steps), "updates": np.array(self.optimizer.updates)}

    def load_host_state(self, state):
        self.steps, self.optimizer.updates = int(state["steps"]), int(state["updates"])

    def _initialise(self):
        """N(0, 0.01), the same on any number of ranks."""
        for generator, drawn, here in seeded_blocks(self.start, self.end, self.seed):
            self.weights[here] = 0.01 * torch.randn(BLOCK, self.weights.shape[1], generator=generator)[drawn]
