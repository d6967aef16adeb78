"""What one writes without a framework: a softmax over one dense matrix of class weights, by autograd."""

import torch
import torch.nn.functional as F
from torch import nn

from ffc_ds.heads.base import Head, Shard


class PlainSoftmax(Head):
    """CosFace (arXiv 1801.09414) with margin 0.4 and scale 64, trained by torch's SGD, on one rank.

    The class weights [classes, dim] and the products with them are of type `dtype`, the cross-entropy is fp32.
    """

    def __init__(self, classes: int, dim: int, dtype: torch.dtype, device: torch.device):
        self.weights = nn.Parameter(torch.empty(classes, dim, dtype=dtype, device=device).normal_(std=0.01))
        self.optimizer = torch.optim.SGD([self.weights], momentum=0.9, weight_decay=5e-4)

    def _loss(self, probe, identities, gallery):
        features = F.normalize(probe.flatten(0, 1), dim=1).to(self.weights.dtype)
        cosines = F.linear(features, F.normalize(self.weights, dim=1)).float()
        labels = torch.from_numpy(identities.flatten()).to(cosines.device)
        cosines[torch.arange(len(labels), device=labels.device), labels] -= 0.4
        return F.cross_entropy(64 * cosines, labels), {}

    def step(self, applied, learning_rate):
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def shards(self):
        return {"weights": Shard(self.weights.data, dim=0, length=len(self.weights))}
