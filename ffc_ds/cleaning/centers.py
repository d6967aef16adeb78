"""Centers of identities that wrong images do not move, and how near each image is to the others of its identity."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.cleaning.vectors import Embeddings, shared_array
from ffc_ds.distributed import all_reduce, barrier, rank, world_size

BLOCK = 16384  # images


class Centers(NamedTuple):
    """Of a set with n images of I identities."""

    unit: Tensor
    """float32 [I, D], memory-mapped: the direction of the sum of those images that agree."""
    own: np.ndarray
    """float32 [n]: cosine of each image with the sum of those others of its identity; NaN if there is none."""
    agreeing: np.ndarray
    """int64 [I]: how many images that are; 0 if fewer than two agree, and then the sum is that of all."""


def find_centers(embeddings: Embeddings, belongs: float, scratch: Path, device: torch.device) -> Centers:
    """Centers of all identities; all ranks call it. An image agrees if its cosine with the sum of all others of its
    identity is `belongs` at least. Each rank looks at whole identities, in blocks of images."""
    index = embeddings.index
    sums = shared_array(scratch, (index.identities, embeddings.dim), torch.float32)
    first, end = np.searchsorted(index.offsets[:-1], np.arange(2) * _share(embeddings) + rank() * _share(embeddings))
    own, counted = np.zeros(len(embeddings), np.float32), np.ones(len(embeddings), bool)
    agreeing = np.zeros(index.identities, np.int64)
    if first < end:
        _add_up(embeddings, sums, counted, first, end)
        _compare(embeddings, sums, counted, own, first, end)
        images = index.images[index.offsets[first] : index.offsets[end]]
        agrees = own[images] >= belongs
        found = np.add.reduceat(agrees, index.offsets[first:end] - index.offsets[first], dtype=np.int64)
        agreeing[first:end] = np.where(found >= 2, found, 0)
        counted[images] = agrees | np.repeat(found < 2, index.counts[first:end])
        _add_up(embeddings, sums, counted, first, end)
        _compare(embeddings, sums, counted, own, first, end)
        for start in range(first, end, BLOCK):
            part = sums[start : min(start + BLOCK, end)]
            part.copy_(F.normalize(part, dim=1))
    own, agreeing = (all_reduce(torch.from_numpy(each).to(device)).cpu().numpy() for each in (own, agreeing))
    own[index.images[index.offsets[:-1][index.counts == 1]]] = np.nan
    barrier()
    return Centers(sums, own, agreeing)


def nearest_images(embeddings: Embeddings, own: np.ndarray) -> np.ndarray:
    """The image of each identity that is nearest to the others, int64 [I]."""
    index = embeddings.index
    codes = np.repeat(np.arange(index.identities), index.counts)
    return index.images[np.lexsort((-own[index.images], codes))[index.offsets[:-1]]]


def _share(embeddings: Embeddings) -> int:
    """Images whose identities begin in one rank's part."""
    return -(-len(embeddings) // world_size())


def _blocks(embeddings: Embeddings, first: int, end: int):
    """Images of identities from `first` to `end` (int64 [k]), their identities and vectors."""
    index = embeddings.index
    for start in range(index.offsets[first], index.offsets[end], BLOCK):
        places = np.arange(start, min(start + BLOCK, index.offsets[end]))
        images = index.images[places]
        yield images, torch.from_numpy(index.image_identity(places)), embeddings.unit(images)


def _add_up(embeddings: Embeddings, sums: Tensor, counted: np.ndarray, first: int, end: int) -> None:
    sums[first:end] = 0
    for images, identities, vectors in _blocks(embeddings, first, end):
        sums.index_add_(0, identities, vectors * torch.from_numpy(counted[images])[:, None])


def _compare(embeddings: Embeddings, sums: Tensor, counted: np.ndarray, own: np.ndarray, first: int, end: int) -> None:
    for images, identities, vectors in _blocks(embeddings, first, end):
        others = sums[identities] - vectors * torch.from_numpy(counted[images])[:, None]
        own[images] = F.cosine_similarity(vectors, others).numpy()
