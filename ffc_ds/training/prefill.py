"""Classes before the first step that are made of features: a pass of the net over images of their identities."""

from collections.abc import Callable

import numpy as np
import torch

from ffc_ds.config.settings import Config
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.randomness import mix, permute
from ffc_ds.distributed import rank, world_size
from ffc_ds.embedding import embed, of_pixels
from ffc_ds.heads.base import Head
from ffc_ds.training.engine import Engine

STREAM = 200
CHUNK = 1 << 16  # images, about, whose features are in memory at once


def prefill(
    head: Head,
    engine: Engine,
    faces: Faces,
    index: IdentityIndex,
    config: Config,
    batch_size: int,
    shown: Callable,
    known: np.ndarray | None = None,
) -> bool:
    """Give `head` the features of all images of all identities, if head.init asks for it, or else those of one image
    each of as many identities as it wants. All ranks call it. Returns whether there was anybody to do that for.

    batch_size: images of a rank at once, as in training; shown: wraps the batches, to show how far it is; known: bool
    [identities], those which have a class already and are left out.
    """
    key = mix(config.seed, STREAM)
    torch.manual_seed(int(mix(key, rank())) >> 1)  # dropout
    whole = config.head.init == "features"
    wanted = np.arange(index.identities if whole else head.prefill_identities)
    wanted = wanted if whole else permute(wanted, index.identities, key)
    if known is not None:
        wanted = wanted[~known[wanted]]
    if not len(wanted):
        return False
    counts = index.counts[wanted] if whole else np.ones(len(wanted), np.int64)
    chunks = _chunks(counts)
    batches = sum(-(-int(counts[chunk].sum()) // (batch_size * world_size())) for chunk in chunks)
    steps = iter(shown(range(batches)))
    for chunk in chunks:
        identities = np.repeat(wanted[chunk], counts[chunk])
        number = np.arange(len(identities)) - np.repeat(np.cumsum(counts[chunk]) - counts[chunk], counts[chunk])
        if whole:  # a batch of one person's images would have the person normalised away
            order = permute(np.arange(len(identities)), len(identities), key)
            identities, number = identities[order], number[order]
        features = embed(
            of_pixels(engine.gallery_features, engine.device, engine.dtype),
            faces,
            index.images[index.offsets[identities] + number],
            config.model.image_size,
            batch_size,
            progress=lambda images: (batch for batch, _ in zip(images, steps, strict=False)),
            max_megapixels=config.data.max_megapixels,
        )
        head.prefill(identities, features)
    next(steps, None)  # the bar goes
    return True


def _chunks(counts: np.ndarray) -> list[slice]:
    """Parts of identities with so many images (int64 [n]): about CHUNK of them each, none much smaller than the others,
    and no identity in two."""
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.linspace(0, ends[-1], -(-ends[-1] // CHUNK) + 1)[1:-1]) + 1
    bounds = np.unique([0, *cuts, len(counts)])
    return [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]
