"""A backbone of this package."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ffc_ds.embedding import of_pixels
from ffc_ds.encoders.base import Encoder

CPU = torch.device("cpu")


class NetEncoder(Encoder):
    """A backbone in evaluation mode, moved to `device`. weights: hexadecimal, changes with them."""

    def __init__(self, model: PreTrainedModel, device: torch.device = CPU, weights: str = ""):
        self.image_size, self.dim = model.config.image_size, model.config.embedding_size
        self.about = {"weights": weights}
        self.model = model.to(device)
        self._encode = of_pixels(lambda inputs: self.model(inputs).embeddings, device, model.dtype)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        return self._encode(pixels)
