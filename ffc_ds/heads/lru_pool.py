"""FFC, also called F2C: faster face classification against a dynamic class pool (arXiv 2105.10375, CVPR 2022)."""

import numpy as np
import torch
import torch.nn.functional as F

from ffc_ds.config.margins import scale_of
from ffc_ds.config.settings import HeadConfig
from ffc_ds.distributed import to_device
from ffc_ds.heads.base import Head, Shard, finite_rows, unit_features
from ffc_ds.heads.hard_negatives import hard_negatives_of
from ffc_ds.heads.margins import make_margin
from ffc_ds.heads.pool_loss import PoolColumns, PoolLossSettings, pool_loss
from ffc_ds.heads.seeded_blocks import BLOCK, seeded_blocks
from ffc_ds.heads.workspace import Workspace
from ffc_ds.pool.index import PoolIndex, Taken
from ffc_ds.pool.storage import PoolStorage


class LRUPool(Head):
    """Two passes over one pool with the roles of the views exchanged; only the second leaves its features there."""

    wants_gallery = True

    def __init__(
        self,
        config: HeadConfig,
        capacity: int,
        dim: int,
        device: torch.device,
        prefill_identities: int = 0,
        seed: int = 0,
    ):
        self.config, self.capacity, self.seed = config, capacity, seed
        self.prefill_identities = min(prefill_identities, capacity)
        self.index = PoolIndex(capacity, config.group_size)
        self.workspace = Workspace(device)
        self.storage = PoolStorage(capacity, config.group_size, dim, device, getattr(torch, config.dtype))
        self.steps = 0
        self.settings = PoolLossSettings(
            margin=make_margin(config),
            scale=scale_of(config),
            hard_negatives=hard_negatives_of(capacity),
            fresh_weight=config.fresh_weight,
            workspace_bytes=config.workspace_mb << 20,
        )
        if not config.hide_unfilled:
            self._fill_with_noise()

    def _loss(self, probe, identities, gallery):
        """Pass A: probe(x) against a pool that took in gallery(y), taken back. Pass B: probe(y)
        against one that keeps gallery(x). The loss is the mean of both passes and all matrices, or their sum."""
        probes = unit_features(probe)
        features = unit_features((probe if gallery is None else gallery).detach())
        mark = self.index.mark(), self.storage.mark()
        tentative, parts = self._pass(probes[0], identities[0], features[1], identities[1])
        self.index.undo(mark[0])
        self.storage.undo(mark[1])
        kept, metrics = self._pass(probes[1], identities[1], features[0], identities[0])
        share = 1 / (2 * self.config.group_size) if self.config.loss_terms == "mean" else 1.0
        metrics |= {name: share * (metrics[name] + parts[name]) for name in ("loss_existing", "loss_fresh")}
        return share * (tentative + kept), metrics

    def _pass(self, probes, probe_identities, gallery, gallery_identities):
        used, age = self.index.used, self._center_age(probe_identities)
        taken = self._take_in(gallery_identities, gallery)
        slots = self.index.find(probe_identities)
        columns = self._columns(taken.hit)
        total, existing, fresh = pool_loss(probes, slots, taken.hit, columns, self.settings, self.workspace)
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

    def _take_in(self, identities: np.ndarray, features: torch.Tensor) -> Taken:
        """Gallery features [n, dim] into the pool; of several for one row the last one stays."""
        storage, device = self.storage, self.storage.features.device
        taken = self.index.take_in(identities, self.steps)
        mine = np.flatnonzero(taken.last & storage.own(taken.slots))
        storage.write(taken.rows[mine], taken.slots[mine], features[to_device(mine, device)])
        return taken

    def _columns(self, hit: np.ndarray) -> PoolColumns:
        storage, rows = self.storage, self.config.group_size
        end = min(storage.end, self.index.used) if self.config.hide_unfilled else storage.end
        special = hit[storage.own(hit)] if rows > 1 else hit[:0]
        row = np.arange(rows)[:, None]
        if self.config.own_rows_only:
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
        labels, features = finite_rows(identities, gallery)
        if not len(labels):
            return
        self._take_in(labels, features)
        self.index.settle()
        self.storage.settle()

    def shards(self):
        return {"pool": Shard(self.storage.features, dim=1, length=self.capacity)}

    def host_state(self):
        return {f"index.{name}": array for name, array in self.index.state().items()} | {"steps": np.array(self.steps)}

    def load_host_state(self, state):
        self.index.load({name.removeprefix("index."): array for name, array in state.items()})
        self.steps = int(state["steps"])

    def checksum(self):
        return self.index.checksum()

    def _fill_with_noise(self):
        """The released code's start: normalised uniform numbers."""
        storage = self.storage
        for generator, drawn, here in seeded_blocks(storage.start, storage.end, self.seed):
            noise = torch.rand(storage.rows, BLOCK, storage.dim, generator=generator)[:, drawn]
            storage.features[:, here] = F.normalize(noise, dim=-1)
