"""Centers before the first step: a pass of the net that makes them over an image each of a share of the identities."""

from collections.abc import Callable

import numpy as np
import torch

from ffc_ds.config.settings import Config
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.randomness import mix, permute
from ffc_ds.distributed import rank
from ffc_ds.embedding import embed, of_pixels
from ffc_ds.heads.base import Head
from ffc_ds.training.engine import Engine

STREAM = 200
CHUNK = 1 << 16  # identities whose features are in memory at once


def prefill(
    head: Head, engine: Engine, faces: Faces, index: IdentityIndex, config: Config, batch_size: int, shown: Callable
) -> None:
    """Give `head` the features of as many identities as it asks for. All ranks call it.

    batch_size: images of a rank at once, as in training; shown: wraps the batches, to show how far it is.
    """
    key = mix(config.seed, STREAM)
    torch.manual_seed(int(mix(key, rank())) >> 1)  # dropout
    wanted = permute(np.arange(head.prefill_identities), index.identities, key)
    for identities in np.array_split(wanted, -(-len(wanted) // CHUNK)) if len(wanted) else ():
        features = embed(
            of_pixels(engine.gallery_features, engine.device, engine.dtype),
            faces,
            index.images[index.offsets[identities]],
            config.model.image_size,
            batch_size,
            progress=shown,
            max_megapixels=config.data.max_megapixels,
        )
        head.prefill(identities, features)
