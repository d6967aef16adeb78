"""What the trainer knows about a head. A head sees features, identities and its own state: no image, file or engine."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as Placement

from ffc_ds.distributed import active, gather_views, to_device, world_size
from ffc_ds.errors import shared


@dataclass(frozen=True)
class Shard:
    """A tensor of class state of which this rank holds `local`: its part along `dim` of `length` rows in all."""

    local: Tensor
    dim: int
    length: int

    def tensor(self) -> Tensor:
        """The whole, a view of `local`, as torch.distributed.checkpoint saves it and loads it on any number of ranks: a
        DTensor over all ranks, or `local` itself without a process group."""
        if not active():
            return self.local
        # On a mesh of another device it would be a copy: class state may lie in host memory.
        mesh = init_device_mesh(self.local.device.type, (world_size(),))
        shape = list(self.local.shape)
        shape[self.dim] = self.length
        stride = torch.empty(shape, device="meta").stride()
        placement, shape = [Placement(self.dim)], torch.Size(shape)
        return DTensor.from_local(self.local, mesh, placement, run_check=False, shape=shape, stride=stride)


def checked_labels(probe: Tensor, identities: np.ndarray, number: int | None = None) -> np.ndarray:
    """int64 [2, world_size * r], the labels of all ranks' rows for `Head.loss`, whole numbers of any type. Raises
    UserError, on all ranks, unless they are that, from 0 on and, if there are so many identities, below `number`."""
    wanted = len(probe), world_size() * probe.shape[1]
    if identities.shape != wanted or identities.dtype.kind not in "iu":
        raise shared(
            f"labels are {identities.dtype} {identities.shape}, where features {tuple(probe.shape)} on each of "
            f"{world_size()} ranks have whole numbers {wanted}: those of the rows of all ranks, in rank order."
        )
    last = np.iinfo(np.int64).max if number is None else number - 1
    if identities.min() < 0 or identities.max() > last:
        most = "" if number is None and identities.max() <= last else f" to {last}"
        raise shared(f"labels go from {identities.min()} to {identities.max()}; identities are numbered from 0{most}.")
    return identities.astype(np.int64, copy=False)


def unit_features(features: Tensor) -> Tensor:
    """Features [2, r, dim] of this rank, of any float type, as fp32 unit vectors [2, world_size * r, dim] of all."""
    return gather_views(F.normalize(features.float(), dim=-1))


def finite_rows(identities: np.ndarray, gallery: Tensor) -> tuple[np.ndarray, Tensor]:
    """Those of identities int64 [n] whose features are finite and have a direction, and these as fp32 unit vectors, of
    [n, dim]."""
    units = F.normalize(gallery.float(), dim=1)
    usable = (units.norm(dim=1) > 0.5).numpy(force=True)  # nan is not
    return identities[usable], units[to_device(usable, gallery.device)]


class Head(ABC):
    """A loss over identities together with the class state it keeps, of which every rank holds a part.

    `wants_gallery`: `loss` makes class centers of the features of a gallery net, if there is one.
    `prefill_identities`: how many identities `prefill` wants to see once before training.
    `rows_of_identities`: row i of each of the `shards`, along dimension 0, is of identity i, so that it can go on as
    that of the identity of the same name in another run; there are as many as `classes`, the rows of all ranks.
    `identities`: how many there are, if that is known: labels beyond are refused.
    """

    wants_gallery = False
    prefill_identities = 0
    rows_of_identities = False
    classes: int
    identities: int | None = None

    def loss(
        self, probe: Tensor, identities: np.ndarray, gallery: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of one micro-batch and its parts, equal on all ranks.

        probe: [2, r, dim] features of this rank's rows of the two views, any float type, of any length, with gradient;
        gallery: the same of the gallery net, without gradient, for heads that want one; None: the probe's own;
        identities: int64 [2, world_size * r], or other whole numbers, host data, of the rows of all ranks in rank
        order. Raises UserError, on all ranks, if labels or gallery are not so.
        The gradient that reaches `probe` is that of the loss times the world size, because DeepSpeed, DDP and FSDP take
        the mean over ranks. Where gradients are summed over ranks instead, divide the loss by the world size.
        """
        identities = checked_labels(probe, identities, self.identities)
        if gallery is not None and gallery.shape != probe.shape:
            given, wanted = tuple(gallery.shape), tuple(probe.shape)
            raise shared(f"gallery features are {given}, and those of the probe {wanted}: they are of the same rows.")
        with torch.autocast(probe.device.type, enabled=False):  # it would have products and sums in half precision
            return self._loss(probe, identities, gallery)

    @abstractmethod
    def _loss(
        self, probe: Tensor, identities: np.ndarray, gallery: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """`loss` for identities int64 that have been checked."""

    @abstractmethod
    def step(self, applied: bool, learning_rate: float) -> None:
        """Close an optimizer step: keep what the micro-batches since the last call did to the class state if the
        backbone's step was `applied`, otherwise take all of it back."""

    def compile(self) -> None:  # noqa: B027 (not all heads have something to compile)
        """Compile, when it is first needed, what can be. The numbers stay the same within rounding."""

    def prefill(self, identities: np.ndarray, gallery: Tensor) -> None:  # noqa: B027 (most heads keep no features)
        """Take in gallery features [n, dim], equal on all ranks, of these identities, int64 [n], before the first step.
        Rows that are not finite, or have no direction, are left out. An identity that stands there several times gets
        the mean, or in a pool of the latest features all of them, the last ones in the end; it must not stand in
        another call."""

    def take_rows(self, rows: Tensor, state: dict[str, Tensor], rescaled: bool) -> None:  # noqa: B027 (as above)
        """Begin with rows of another run. rows: int64 [u], of this rank's; state: those that belong there of the
        `shards` that both runs have, any float type [u, ...]; rescaled: only the direction of the weights counts,
        because one run has centers made of features and the other trained weights."""

    def take_updates(self, updates: int) -> None:  # noqa: B027 (as above)
        """The state of an optimizer among the rows that were taken is that of so many updates."""

    def shards(self) -> dict[str, Shard]:
        """The class state that is sharded over ranks, to be saved from and loaded into in place."""
        return {}

    def host_state(self) -> dict[str, np.ndarray]:
        """The class state that is the same on every rank."""
        return {}

    def load_host_state(self, state: dict[str, np.ndarray]) -> None:  # noqa: B027 (as above)
        """Take over what `host_state` returned."""

    def checksum(self) -> int:
        """A number on which all ranks must agree."""
        return 0
