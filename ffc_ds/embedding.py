"""Features of many images by all ranks together, in order."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.data.augment import to_input
from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.data.loader import image_batches
from ffc_ds.distributed import all_gather, rank, world_size


@torch.no_grad()
def embed(
    features: Callable[[Tensor], Tensor],
    images,
    rows: np.ndarray,
    image_size: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    mirror: bool = False,
    unit: bool = True,
    progress: Callable = iter,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Tensor:
    """Features fp32 [n, dim], scaled to length 1 if `unit`, of the images in `rows` (int64 [n]), equal on all ranks.

    features: the net, input [b, 3, S, S] -> [b, dim]. images: `data.faces.Faces` or anything that reads like it.
    mirror: add the feature of the mirror image, as verification does. Every rank runs the same number of equal
    batches (the last ones padded), because the forward of a sharded net is collective, and because a net that
    normalises by its batch needs a whole one.
    """
    batches = -(-len(rows) // (batch_size * world_size()))
    own = np.resize(rows, (world_size(), batches * batch_size))[rank()]
    found = []
    for pixels in progress(image_batches(images, own, image_size, batch_size, 0, max_megapixels)):
        inputs = to_input(pixels.to(device), dtype=dtype)
        feature = features(inputs).float()
        if mirror:
            feature = feature + features(inputs.flip(3)).float()
        found.append(F.normalize(feature, dim=1) if unit else feature)
    return all_gather(torch.cat(found)).flatten(0, 1)[: len(rows)]
