"""What every backbone returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class FaceEmbedding(ModelOutput):
    """What every backbone returns.

    embeddings: float [B, embedding_size], not normalised, in the dtype of the weights.
    """

    embeddings: torch.Tensor | None = None
