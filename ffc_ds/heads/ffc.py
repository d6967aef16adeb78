"""FFC, also called F2C: faster face classification against a dynamic class pool (arXiv 2105.10375, CVPR 2022)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ffc_ds.distributed import all_gather, gather_views, to_device
from ffc_ds.heads.base import Head, Shard
from ffc_ds.heads.margins import make_margin
from ffc_ds.heads.pool_loss import PoolColumns, PoolLossSettings, pool_loss
from ffc_ds.pool.index import PoolIndex
from ffc_ds.pool.storage import PoolStorage


@dataclass(frozen=True)
class FFCSettings:
    """The settings of the head, resolved to numbers; `config.HeadConfig` explains each.

    `hide_unfilled`: slots that nobody holds are no negatives (otherwise they are, with random features).
    `own_rows_only`: matrix k reads row k of a hit slot only if the present holder wrote it.
    """

    capacity: int
    dim: int
    group_size: int = 3
    margin: str = "am"
    margin_strength: float | None = None
    scale: float = 32.0
    fresh_weight: float = 1.0
    hide_unfilled: bool = True
    own_rows_only: bool = True
    arc_guard: bool = True
    prefill_identities: int = 0
    workspace_bytes: int = 64 << 20
    seed: int = 0

    @property
    def hard_negatives(self) -> int:
        return min(max(int(2e-4 * self.capacity), 3), 10)


class FFC(Head):
    """Two passes over one pool with the roles of the views exchanged; only the second leaves its features there."""

    wants_gallery = True

    def __init__(self, settings: FFCSettings, device: torch.device):
        self.settings = settings
        self.prefill_identities = min(settings.prefill_identities, settings.capacity)
        self.index = PoolIndex(settings.capacity, settings.group_size)
        self.storage = PoolStorage(settings.capacity, settings.group_size, settings.dim, device)
        self.steps = 0
        guard = {"guard": settings.arc_guard} if settings.margin == "arc" else {}
        self._loss_settings = PoolLossSettings(
            make_margin(settings.margin, settings.margin_strength, **guard),
            settings.scale,
            settings.hard_negatives,
            settings.fresh_weight,
            settings.workspace_bytes,
        )
        if not settings.hide_unfilled:
            self._fill_with_noise()

    def loss(self, probe, identities, gallery=None):
        """See `Head.loss`. Pass A: probe(x) against a pool that took in gallery(y), taken back. Pass B: probe(y)
        against one that keeps gallery(x). The loss is A + B."""
        probes = gather_views(F.normalize(probe.float(), dim=-1))
        with torch.no_grad():
            features = all_gather(F.normalize(gallery.float(), dim=-1)).transpose(0, 1).flatten(1, 2)
        mark = self.index.mark(), self.storage.mark()
        tentative, parts = self._pass(probes[0], identities[0], features[1], identities[1])
        self.index.undo(mark[0])
        self.storage.undo(mark[1])
        kept, metrics = self._pass(probes[1], identities[1], features[0], identities[0])
        metrics |= {name: metrics[name] + parts[name] for name in ("loss_existing", "loss_fresh")}
        return tentative + kept, metrics

    def _pass(self, probes, probe_identities, gallery, gallery_identities):
        used, age = self.index.used, self._center_age(probe_identities)
        taken = self.index.take_in(gallery_identities, self.steps)
        self.storage.write(taken, gallery)
        slots = self.index.find(probe_identities)
        total, existing, fresh = pool_loss(probes, slots, taken.hit, self._columns(taken.hit), self._loss_settings)
        pooled = slots[slots >= 0]
        missed = self.index.used - used + taken.evicted
        metrics = {
            "loss_existing": existing,
            "loss_fresh": fresh,
            "existing": len(pooled) / len(slots),
            "pool_fill": self.index.used / self.index.capacity,
            "pool_hit_rate": 1 - missed / len(taken.slots),
            "pool_evictions": float(taken.evicted),
            "center_age": age,
        }
        return total, metrics

    def _center_age(self, identities: np.ndarray) -> float:
        """Mean number of steps since the pooled ones of these identities were last seen by the gallery net."""
        slots = self.index.find(identities)
        slots = slots[slots >= 0]
        return float(np.mean(self.steps - self.index.touched[slots])) if len(slots) else 0.0

    def _columns(self, hit: np.ndarray) -> PoolColumns:
        storage, rows = self.storage, self.settings.group_size
        end = min(storage.end, self.index.used) if self.settings.hide_unfilled else storage.end
        special = hit[(hit >= storage.start) & (hit < storage.end)] if rows > 1 else hit[:0]
        row = np.arange(rows)[:, None]
        if self.settings.own_rows_only:
            row = np.where(row < self.index.written[special], row, 0)
        row = np.broadcast_to(row, (rows, len(special)))
        local = special - storage.start
        device = storage.features.device
        variants = storage.features[to_device(row, device), to_device(local, device)]
        return PoolColumns(storage.features[0, : max(end - storage.start, 0)], local, variants, storage.start)

    def step(self, applied, learning_rate):
        if not applied:
            self.index.undo((0, 0))
            self.storage.undo(0)
        self.index.settle()
        self.storage.settle()
        self.steps += 1

    def prefill(self, identities, gallery):
        self.storage.write(self.index.take_in(identities), F.normalize(gallery.float(), dim=-1))
        self.index.settle()
        self.storage.settle()

    def shards(self):
        return {"pool": Shard(self.storage.features, dim=1, length=self.settings.capacity)}

    def host_state(self):
        return {f"index.{name}": array for name, array in self.index.state().items()} | {"steps": np.array(self.steps)}

    def load_host_state(self, state):
        self.index.load({name.removeprefix("index."): array for name, array in state.items()})
        self.steps = int(state["steps"])

    def checksum(self):
        return self.index.checksum()

    def _fill_with_noise(self, block: int = 4096):
        """The released code's start, the same on any number of ranks: normalised uniform numbers."""
        storage = self.storage
        for first in range(storage.start // block * block, storage.end, block):
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + first // block)
            noise = torch.rand(storage.rows, block, storage.dim, generator=generator)
            begin, end = max(first, storage.start), min(first + block, storage.end)
            own = F.normalize(noise[:, begin - first : end - first], dim=-1)
            storage.features[:, begin - storage.start : end - storage.start] = own.to(storage.features)
