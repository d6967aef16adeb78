"""What evaluation and embedding know of a model."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Encoder(ABC):
    """Embeds images, in evaluation mode and without gradient.

    Attributes:
        image_size: side of the square input, pixels.
        dim: length of an embedding.
        about: what its embeddings depend on, ready for JSON: the same for the same weights and the same treatment of
            images.
    """

    image_size: int
    dim: int
    about: dict[str, Any]

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [b, image_size, image_size, 3], RGB, in the host's memory -> float [b, dim], of any length, on any
        device."""
