"""What full softmax, Partial FC, Virtual FC and the drawn pool share: a row of numbers a class, sharded over ranks, and
a margin softmax over some of them.

ArcFace (arXiv 1801.07698, section 2.2) describes the sharding; the margins are those of `margins/`. With several
sub-centers (Deng and others, "Sub-center ArcFace", ECCV 2020) a row's cosine with a class is the largest of K.
"""

import zlib
from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.config.margins import scale_of
from ffc_ds.config.settings import HeadConfig
from ffc_ds.distributed import gather_views, rank, shard_bounds, to_device, world_size
from ffc_ds.errors import shared
from ffc_ds.heads.base import Head, Shard, finite_rows, unit_features
from ffc_ds.heads.class_softmax import ClassSoftmax, ClassSoftmaxSettings, Columns
from ffc_ds.heads.margins import Rows, RunningState, make_margin
from ffc_ds.heads.row_kernels import RowKernels, unit_vectors_
from ffc_ds.heads.seeded_blocks import BLOCK, seeded_blocks
from ffc_ds.heads.softmax import add_rows
from ffc_ds.heads.workspace import Workspace

FIRST_DEVIATION = 0.01
FIRST_LENGTH = 0.25  # at most, about, of a center that features will take the place of


class ClassHead(Head):
    """One vector a class, or K side by side, [own classes, K * dim] on each rank.

    trained: whether a gradient of the vectors will be asked for.
    center_norm: what a vector is scaled to that was made of features.
    """

    rows_of_identities = True

    def __init__(
        self,
        config: HeadConfig,
        classes: int,
        dim: int,
        device: torch.device,
        seed: int = 0,
        accumulation: int = 1,
        trained: bool = True,
    ):
        self.config, self.classes, self.seed = config, classes, seed
        self.start, self.end = shard_bounds(classes, rank(), world_size())
        vectors = config.sub_centers * dim
        self.weights = torch.empty(self.end - self.start, vectors, device=device, dtype=getattr(torch, config.dtype))
        self.margin = make_margin(config)
        self.unit_dim = dim if self.margin.unit_rows else None
        self._initialise(FIRST_DEVIATION if trained else min(FIRST_DEVIATION, FIRST_LENGTH / dim**0.5))
        self.workspace = Workspace(device)
        self.kernels = RowKernels(self.workspace)
        self.state = RunningState(self.margin, device)
        self.center_norm = FIRST_DEVIATION * dim**0.5 if trained and not self.unit_dim else 1.0
        self.settings = ClassSoftmaxSettings(
            self.margin,
            scale_of(config),
            config.interclass_filter,
            (config.workspace_mb << 20) // accumulation,
            config.sub_centers,
            trained,
        )
        self.micro_batches: list[ClassSoftmax] = []
        self.steps = 0

    def _loss(self, probe, identities, gallery):
        """The two views are one batch."""
        features = unit_features(probe).flatten(0, 1)
        norms = self._norms(probe)
        columns = self._columns(identities.reshape(-1), features.detach())
        number = len(self.micro_batches)
        rows = Rows(norms=None if norms is None else norms.detach().flatten(), draws=self._draws(*identities.shape))
        width = self.micro_batches[0].width if self.micro_batches else None  # one may have fewer rows
        kept = self.workspace, number, rows, self.state, self.kernels, width
        softmax = ClassSoftmax(features.detach(), columns, self.settings, *kept)
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

    @abstractmethod
    def _columns(self, labels: np.ndarray, features: Tensor) -> list[Columns]:
        """What a micro-batch with these labels int64 [R] and features [R, dim] is compared with on this rank."""

    def step(self, applied, learning_rate):
        self.state.settle(applied)
        self.micro_batches.clear()
        self.steps += 1

    def prefill(self, identities, gallery):
        if self.config.sub_centers > 1:
            raise shared("features make one vector a class: head.sub_centers must be 1 to begin with them.")
        self._put(*self._means(*finite_rows(identities, gallery)))

    def _means(self, labels: np.ndarray, features: Tensor) -> tuple[Tensor, Tensor]:
        """Own rows, int64 [u], of which there are features among fp32 [n, dim] of these labels, int64 [n], and their
        unit means [u, dim]."""
        own = np.flatnonzero((labels >= self.start) & (labels < self.end))
        rows, place = np.unique(labels[own] - self.start, return_inverse=True)
        own, rows, place = (to_device(part, features.device) for part in (own, rows, place))
        sums = torch.zeros(len(rows), features.shape[1], device=features.device)
        add_rows(sums, place, features[own])
        return rows, F.normalize(sums, dim=1)

    def _put(self, rows: Tensor, centers: Tensor) -> None:
        """Vectors fp32 [u, dim] of which only the direction counts into their rows."""
        centers = self.center_norm * F.normalize(centers, dim=1)
        self.weights.index_copy_(0, rows, centers.to(self.weights.dtype))

    def take_rows(self, rows, state, rescaled):
        weights = state["weights"].to(self.weights.device).float()
        if rescaled:
            self._put(rows, weights)
            return
        if self.unit_dim:
            unit_vectors_(weights, self.unit_dim)
        self.weights.index_copy_(0, rows, weights.to(self.weights.dtype))

    def shards(self):
        return {"weights": Shard(self.weights, dim=0, length=self.classes)}

    def host_state(self):
        state = {"steps": np.array(self.steps)}
        return state | ({"margin": self.state.settled.numpy(force=True)} if self.margin.state else {})

    def load_host_state(self, state):
        self.steps = int(state["steps"])
        if self.margin.state:
            self.state.load(torch.from_numpy(state["margin"]))

    def checksum(self):
        return zlib.crc32(self.state.settled.numpy(force=True).tobytes())

    def _initialise(self, deviation: float):
        """N(0, deviation), the same on any number of ranks; unit vectors if the margin wants them."""
        for generator, drawn, here in seeded_blocks(self.start, self.end, self.seed):
            block = deviation * torch.randn(BLOCK, self.weights.shape[1], generator=generator)[drawn]
            if self.unit_dim:
                unit_vectors_(block, self.unit_dim)
            self.weights[here] = block
