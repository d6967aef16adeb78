"""Full softmax with the classes sharded over ranks: model-parallel FC, the reference for every other system.

ArcFace (arXiv 1801.07698, section 2.2) describes the sharding; the margins are those of `margins/`. With several
sub-centers (Deng and others, "Sub-center ArcFace", ECCV 2020) a row's cosine with a class is the largest of K.
"""

import zlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.config.margins import SCALES
from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import gather_views, rank, shard_bounds, to_device, world_size
from ffc_ds.heads.base import Head, Shard
from ffc_ds.heads.class_optimizer import make_class_optimizer, unit_vectors_
from ffc_ds.heads.class_softmax import ClassSoftmax, ClassSoftmaxSettings, Columns
from ffc_ds.heads.margins import Rows, RunningState, make_margin
from ffc_ds.heads.seeded_blocks import BLOCK, seeded_blocks
from ffc_ds.heads.softmax import Cells
from ffc_ds.heads.workspace import Workspace


class FullFC(Head):
    """One weight vector a class, or K side by side, [own classes, K * dim] on each rank; every step compares with all
    and trains all."""

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
        vectors = config.sub_centers * dim
        self.weights = torch.empty(self.end - self.start, vectors, device=device, dtype=getattr(torch, config.dtype))
        self.margin = make_margin(config)
        unit_dim = dim if self.margin.unit_rows else None
        self._initialise(unit_dim)
        self.workspace = Workspace(device)
        self.optimizer = make_class_optimizer(optim, self.weights, self.workspace, seed, unit_dim)
        self.lr_factor = optim.lr_factor
        self.state = RunningState(self.margin, device)
        self.settings = ClassSoftmaxSettings(
            self.margin,
            SCALES.get(config.margin, 64.0) if config.scale is None else config.scale,
            config.interclass_filter,
            (config.workspace_mb << 20) // accumulation,
            config.sub_centers,
        )
        self.micro_batches: list[ClassSoftmax] = []
        self.steps = 0

    def loss(self, probe, identities, gallery=None):
        """See `Head.loss`; the two views are one batch."""
        features = gather_views(F.normalize(probe.float(), dim=-1)).flatten(0, 1)
        norms = self._norms(probe)
        columns = self._columns(identities.reshape(-1), features.detach())
        number = len(self.micro_batches)
        rows = Rows(norms=None if norms is None else norms.detach().flatten(), draws=self._draws(*identities.shape))
        softmax = ClassSoftmax(features.detach(), columns, self.settings, self.workspace, number, rows, self.state)
        self.micro_batches.append(softmax)
        state = {} if softmax.rows.state is None else zip(self.margin.state, softmax.rows.state, strict=True)
        return softmax.loss(features, norms), {f"margin_{name}": value for name, value in dict(state).items()}

    def _norms(self, probe: Tensor) -> Tensor | None:
        """Lengths [R, 1] of the features of all ranks, with gradient, if the margin reads them."""
        if not self.margin.reads_norms:
            return None
        own = probe.float().norm(dim=-1, keepdim=True)
        return gather_views(own if self.margin.trains_norms else own.detach()).flatten(0, 1)

    def _draws(self, views: int, columns: int) -> Tensor | None:
        """The random numbers of the next micro-batch, float32 [views * columns], if the margin takes any."""
        before = len(self.micro_batches) * columns
        drawn = self.margin.draw(self.seed, self.steps, views, range(before, before + columns))
        return None if drawn is None else to_device(drawn, self.weights.device)

    def step(self, applied, learning_rate):
        if applied:
            self.optimizer.begin(self.steps)
            for rows, weights, grad in self._gradients():
                self.optimizer.update(rows, weights, grad, learning_rate * self.lr_factor)
        self.state.settle(applied)
        self.micro_batches.clear()
        self.steps += 1

    def _columns(self, labels: np.ndarray, features: Tensor) -> list[Columns]:
        """What a micro-batch with these labels int64 [R] and features [R, dim] is compared with on this rank."""
        own = np.flatnonzero((labels >= self.start) & (labels < self.end))
        return [Columns(self.weights, Cells(labels[own] - self.start, self.weights.device, own))]

    def _gradients(self) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
        """Rows to train, their weights and their gradients, fp32 [b, K * dim]."""
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
        state = {"steps": np.array(self.steps), "updates": np.array(self.optimizer.updates)}
        return state | ({"margin": self.state.settled.numpy(force=True)} if self.margin.state else {})

    def load_host_state(self, state):
        self.steps, self.optimizer.updates = int(state["steps"]), int(state["updates"])
        if self.margin.state:
            self.state.load(torch.from_numpy(state["margin"]))

    def checksum(self):
        return zlib.crc32(self.state.settled.numpy(force=True).tobytes())

    def _initialise(self, unit_dim: int | None):
        """N(0, 0.01), the same on any number of ranks; unit vectors of `unit_dim` numbers if that is given."""
        for generator, drawn, here in seeded_blocks(self.start, self.end, self.seed):
            block = 0.01 * torch.randn(BLOCK, self.weights.shape[1], generator=generator)[drawn]
            if unit_dim:
                unit_vectors_(block, unit_dim)
            self.weights[here] = block
