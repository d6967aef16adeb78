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
from ffc_ds.distributed import to_device
from ffc_ds.heads.base import unit_features
from ffc_ds.heads.class_head import ClassHead
from ffc_ds.heads.row_kernels import put
from ffc_ds.heads.sampled_columns import sampled_columns
from ffc_ds.heads.sampled_rows import Sample
from ffc_ds.heads.stochastic_rounding import StochasticRounding

SHORTEST_SPAN = 3.0  # features: a momentum of (3 - 1) / (3 + 1) = 0.5
UNSEEN = 0.5  # a random vector from before the first feature is shorter, a center is of length 1


class DrawnPool(ClassHead):
    """A unit vector for each identity, the average of its features: after a step that shows it,
    center <- unit(m * center + (1 - m) * unit(sum of its features of the step)), m being `center_momentum`, but 0 the
    first time, unless the margin wants unit rows, which do not tell whether they were seen. auto is (k - 1) / (k + 1),
    an average that spans k features, but 0.5 or more, for an identity that has n of the `images` (int64 [identities],
    by default one each), k being how many of them the first epoch has shown by now: up to n.

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
        images = np.ones(identities, np.int32) if images is None else images.astype(np.int32)
        self._images, self._all_images = to_device(images[self.start : self.end], device), int(images.sum())
        rounded = self.weights.dtype == torch.bfloat16  # a long average moves in steps that it could not say otherwise
        self._rounding = StochasticRounding(1, dim, device) if rounded else None
        self.pool = max(1, min(slots_of_pool(config.pool_size, identities), identities))
        self.prefill_identities = round(config.prefill * identities)
        self._seen: list[tuple[np.ndarray, Tensor]] = []

    def _loss(self, probe, identities, gallery):
        loss, metrics = super()._loss(probe, identities, gallery)
        if gallery is None:
            features = self.micro_batches[-1].features
        else:
            features = unit_features(gallery.detach()).flatten(0, 1)
            loss = loss * (1 + 0 * features.sum())  # what is not finite refuses the step: the loss would not show it
        self._seen.append((identities.reshape(-1), features))
        return loss, metrics

    def step(self, applied, learning_rate):
        if applied:
            labels, features = zip(*self._seen, strict=True)
            rows, newest = self._means(np.concatenate(labels), torch.cat(features))
            centers = self.weights[rows].float()
            self._move(rows, F.normalize(newest.lerp(centers, self._momenta(rows, centers)), dim=1))
        self._seen.clear()
        super().step(applied, learning_rate)

    def _momenta(self, rows: Tensor, centers: Tensor) -> Tensor:
        """For rows int64 [u] and their present centers [u, dim]: fp32 [u, 1]."""
        seen = centers.norm(dim=1, keepdim=True) > UNSEEN
        if self.config.center_momentum != "auto":
            return seen * self.config.center_momentum
        shown = self.steps * sum(len(labels) for labels, _ in self._seen) / self._all_images
        span = (self._images[rows, None] * min(shown, 1.0)).clamp_min_(SHORTEST_SPAN)
        return seen * (span - 1) / (span + 1)

    def _move(self, rows: Tensor, centers: Tensor) -> None:
        if self._rounding is None:
            self.weights.index_copy_(0, rows, centers)
            return
        self._rounding.begin(self.seed, self.steps)
        rounded = torch.empty_like(centers, dtype=self.weights.dtype)
        put(rounded, centers, *self._rounding.words(rows + self.start))
        self.weights.index_copy_(0, rows, rounded)

    def _columns(self, labels, features):
        sample = Sample(self.classes, self.pool, int(mix(self.seed, self.steps)) >> 1)
        return sampled_columns(self.weights, self.start, sample, labels)
