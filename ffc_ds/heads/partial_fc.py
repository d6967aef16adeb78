"""Partial FC (arXiv 2010.05222, 2203.15565): a softmax over the batch's classes and a random share of the others.

Only the rows that a step looked at are trained: gradient, momentum, weight decay. (The released code moves all rows.)
"""

import numpy as np
import torch

from ffc_ds.data.randomness import mix
from ffc_ds.distributed import to_device
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.heads.sampled_columns import sampled_columns
from ffc_ds.heads.sampled_rows import Sample


class PartialFC(FullFC):
    """A sample of `sample_rate` x classes, the same in all micro-batches of a step, and what it lacks of their own."""

    def _columns(self, labels, features):
        wanted = max(1, round(self.config.sample_rate * self.classes))
        sample = Sample(self.classes, wanted, int(mix(self.seed, self.steps)) >> 1)
        return sampled_columns(self.weights, self.start, sample, labels)

    def _gradients(self):
        sample = self.micro_batches[0].columns[0]
        for block in self.micro_batches[0].blocks(0):
            weights = sample.block(block, self.workspace)
            yield sample.rows[block], weights, self._mean_gradient(0, block, weights)
        yield from self._gradient_of_the_lacking()

    def _gradient_of_the_lacking(self):
        """The micro-batches' own classes outside the sample, each once."""
        parts = [micro.columns[1] for micro in self.micro_batches]
        classes, place = np.unique(np.concatenate([part.host_rows for part in parts]), return_inverse=True)
        if not len(classes):
            return
        rows = to_device(classes, self.weights.device)
        grad = torch.zeros(len(classes), self.weights.shape[1], device=self.weights.device)
        places = to_device(place, self.weights.device).split([len(part) for part in parts])
        for micro, part, place in zip(self.micro_batches, parts, places, strict=True):
            for block in micro.blocks(1):
                grad.index_add_(0, place[block], micro.class_gradient(1, block, part.block(block, self.workspace)))
        yield rows, self.weights[rows], grad.div_(len(parts))
