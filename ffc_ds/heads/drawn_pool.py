"""FFC with a center for everybody: the pool of a step is drawn, and what is in it are averages of features.

As in FFC (arXiv 2105.10375) a class center is made of features, by the gallery net or the probe net itself, and not by
a gradient. As in Partial FC (arXiv 2010.05222) a step compares its images with their own classes and a random share of
the others. The pool of the paper knows the latest identities only, so that most images of a long tail find nobody of
theirs in it, and negatives are those of the last few steps (docs/heads/ffc.md).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.config.settings import HeadConfig, slots_of_pool
from ffc_ds.data.randomness import mix
from ffc_ds.distributed import all_gather, to_device
from ffc_ds.heads.class_head import ClassHead
from ffc_ds.heads.sampled_columns import sampled_columns
from ffc_ds.heads.sampled_rows import Sample


class DrawnPool(ClassHead):
    """A unit vector for each identity, the average of its features: after a step that shows it,
    center <- unit(m * center + (1 - m) * unit(sum of its features of the step)), m being `center_momentum`, where auto is
    n / (n + 1) if it has n of the `images` (int64 [identities], by default one each).

    A step compares with `pool_size` of them, the same in all its micro-batches, and with what they lack of their own.
    The centers are those of before the step. Until an identity was seen its center is random and short, as a class
    weight is at first.
    """

    wants_gallery = True

    def __init__(
        self,
        config: HeadConfig,
        identities: int,
        dim: int,
        device: torch.device,
        seed: int = 0,
        accumulation: int = 1,
        images: np.ndarray | None = None,
    ):
        super().__init__(config, identities, dim, device, seed, accumulation, trained=False)
        counts = np.ones(1) if images is None else images[self.start : self.end]
        auto = config.center_momentum == "auto"
        momenta = counts / (counts + 1) if auto else np.array([config.center_momentum])
        self._momenta = to_device(momenta.astype(np.float32), device)[:, None]
        self.pool = max(1, min(slots_of_pool(config.pool_size, identities), identities))
        self.prefill_identities = round(config.prefill * identities)
        self._seen: list[tuple[np.ndarray, Tensor]] = []

    def loss(self, probe, identities, gallery=None):
        """See `Head.loss`; the two views are one batch."""
        loss, metrics = super().loss(probe, identities)
        if gallery is None:
            features = self.micro_batches[-1].features
        else:
            features = all_gather(F.normalize(gallery.float(), dim=-1)).transpose(0, 1).flatten(0, 2)
        self._seen.append((identities.reshape(-1), features))
        return loss, metrics

    def step(self, applied, learning_rate):
        if applied:
            labels, features = zip(*self._seen, strict=True)
            rows, newest = self._means(np.concatenate(labels), torch.cat(features))
            momenta = self._momenta if len(self._momenta) == 1 else self._momenta[rows]
            self._put(rows, torch.lerp(newest, self.weights[rows].float(), momenta))
        self._seen.clear()
        super().step(applied, learning_rate)

    def _columns(self, labels, features):
        sample = Sample(self.classes, self.pool, int(mix(self.seed, self.steps)) >> 1)
        return sampled_columns(self.weights, self.start, sample, labels)
