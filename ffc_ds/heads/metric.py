"""Losses over the pairs and triplets of a batch, from pytorch-metric-learning: no class state at all.

Semi-hard triplets (FaceNet, arXiv 1503.03832), N-pair (Sohn, NeurIPS 2016), multi-similarity (arXiv 1904.06627).
"""

import math

import torch
from torch import Tensor

from ffc_ds.config.settings import HeadConfig
from ffc_ds.distributed import to_device, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.base import Head, unit_features

TRIPLET_MARGIN = 0.2  # FaceNet's, between squared distances


class Metric(Head):
    """`config.metric_loss` over the features of all ranks; both views are one batch, which every rank looks at whole.

    Only identities with several images in a batch pull, so it wants the id loader. N-pair takes the first two images of
    each identity, and cosines times `config.scale` (64) in place of the published products of unbounded features.
    Multi-similarity has its published numbers. Raises UserError when pytorch-metric-learning is not installed.
    """

    def __init__(self, config: HeadConfig):
        try:
            from pytorch_metric_learning import distances, losses, miners
        except ImportError:
            raise UserError('head.name metric needs pytorch-metric-learning: pip install "ffc_ds[metric]"') from None
        self.length, self.mine = 1.0, None
        if config.metric_loss == "triplet":
            squared = distances.LpDistance(power=2, normalize_embeddings=False)
            self.criterion, self.mine = losses.TripletMarginLoss(TRIPLET_MARGIN, distance=squared), semi_hard_triplets
        elif config.metric_loss == "npair":
            self.criterion = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
            self.length = math.sqrt(64.0 if config.scale is None else config.scale)
        else:
            self.criterion, self.mine = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()

    def _loss(self, probe, identities, gallery):
        """Parts: `active`, the share of images in one of the mined pairs or triplets."""
        features = unit_features(probe).flatten(0, 1)
        labels = to_device(identities.reshape(-1), features.device)
        mined, parts = None, {}
        if self.mine:
            mined = self.mine(features.detach(), labels)
            parts["active"] = features.new_zeros(len(labels)).index_fill_(0, torch.cat(mined), 1.0).mean()
        loss = self.criterion(self.length * features, labels, mined)
        # Each rank has the gradient of the whole loss, and gather_views adds those of all ranks.
        value = loss.detach()
        return value + (loss - value) / world_size(), parts

    def step(self, applied, learning_rate):
        """There is nothing to keep or to take back."""


def semi_hard_triplets(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, positives and negatives with 0 < d(a, n)^2 - d(a, p)^2 <= margin, int64 [t] each, of features [n, dim].

    Those that the library's miner finds, which looks at all n^3 combinations: 2.2 s on a core for n = 1024, here 0.02.
    """
    same = labels[:, None] == labels
    squared = torch.cdist(features, features).square()
    anchors, positives = torch.where(same.clone().fill_diagonal_(False))
    gaps = squared[anchors] - squared[anchors, positives, None]
    pairs, negatives = torch.where((gaps > 0) & (gaps <= TRIPLET_MARGIN) & ~same[anchors])
    return anchors[pairs], positives[pairs], negatives
