"""Features of many images by all ranks together, in order."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.data.augment import to_input
from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.data.reading import image_batches
from ffc_ds.distributed import all_gather, rank, where_ranks_meet, world_size

READERS = 4  # threads that decode while a GPU computes, at most
Encode = Callable[[Tensor], Tensor]  # uint8 [b, S, S, 3], RGB, in the host's memory -> features, float [b, dim]


@torch.no_grad()
def embed(
    encode: Encode,
    images,
    rows: np.ndarray,
    image_size: int,
    batch_size: int,
    mirror: bool = False,
    unit: bool = True,
    progress: Callable = iter,
    max_megapixels: float = MAX_MEGAPIXELS,
    alone: Callable[[Callable[[], Tensor]], Tensor] = lambda own: own(),
) -> Tensor:
    """Features fp32 [n, dim], scaled to length 1 if `unit`, of the images in `rows` (int64 [n]), equal on all ranks.

    images: `data.faces.Faces` or anything that reads like it. mirror: see `both_sides`. Every rank runs the same number
    of equal batches (the last ones padded), because the forward of a sharded net is collective, and because a net that
    normalises by its batch needs a whole one. alone: calls what a rank does without the others, before they meet.
    """
    batches = -(-len(rows) // (batch_size * world_size()))
    own = np.resize(rows, (world_size(), batches * batch_size))[rank()]
    encode = both_sides(encode) if mirror else encode
    threads = min(READERS, torch.get_num_threads())

    def features() -> Tensor:
        found = []
        for pixels in progress(image_batches(images, own, image_size, batch_size, threads, max_megapixels)):
            feature = encode(pixels).float()
            found.append(F.normalize(feature, dim=1) if unit else feature)
        return torch.cat(found)

    return all_gather(where_ranks_meet(alone(features))).flatten(0, 1)[: len(rows)]


def both_sides(encode: Encode) -> Encode:
    """The sum, fp32, of the features of an image and of its mirror image, as verification has it."""
    return lambda pixels: encode(pixels).float() + encode(pixels.flip(2)).float()


def of_pixels(net: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Encode:
    """A net of ours, [b, 3, S, S] in [-1, 1] -> [b, dim], as `embed` calls it."""
    return lambda pixels: net(to_input(pixels.to(device), dtype=dtype))
