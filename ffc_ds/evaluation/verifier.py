"""The pairs of a verification, chosen once, and the verification of a net on them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ffc_ds.data.bounds import MAX_MEGAPIXELS, CorruptImage
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.distributed import world_size
from ffc_ds.embedding import embed, of_pixels
from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_choice import make_pairs
from ffc_ds.evaluation.pair_files import read_pair_bin
from ffc_ds.evaluation.verification import FOLDS, VerificationResult, verify_pairs


class EncodedImages:
    """Encoded images of a file, in memory, read as `data.faces.Faces` are. items: which of the file's each one is,
    int64 [images]."""

    def __init__(self, images: list[bytes], name: str, items: np.ndarray):
        self.images, self.name, self.items = images, name, items

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        return [self.images[row] for row in rows]

    def where(self, row: int) -> str:
        """What to call an image in messages."""
        return f"item {self.items[row]} of {self.name}"


@dataclass(frozen=True)
class Pairs:
    """Rows of `images` (int64 [m]) and n pairs of positions in `rows` with their truth (bool [n]). `name` says where
    they are from."""

    images: object
    name: str
    rows: np.ndarray
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray

    def batch_size(self, largest: int) -> int:
        """Images that each rank embeds at once, at most `largest`."""
        return min(largest, -(-len(self.rows) // world_size()))

    @classmethod
    def from_bin(cls, path: str) -> "Pairs":
        """Pairs of an InsightFace-style .bin; identical images are embedded once. Raises UserError."""
        images, same = read_pair_bin(path)
        check_verifiable(path, same)
        distinct = {}
        places = np.array([distinct.setdefault(image, len(distinct)) for image in images])
        rows, items = np.unique(places, return_index=True)
        return cls(EncodedImages(list(distinct), path, items), path, rows, places[::2], places[1::2], same)

    @classmethod
    def from_identities(cls, faces, name: str, index: IdentityIndex, pairs: int, seed: int) -> "Pairs":
        """Pairs drawn from labelled images, half of them genuine. Raises UserError."""
        rows, left, right, same = make_pairs(index.offsets, index.images, pairs, seed)
        check_verifiable(name, same)
        return cls(faces, name, rows, left, right, same)


def check_verifiable(name: str, same: np.ndarray, folds: int = FOLDS) -> None:
    """Raise UserError where `verify_pairs` could not judge pairs with this truth (bool [n]) in so many folds."""
    if not 2 <= folds <= len(same):
        raise UserError(f"{name} holds {len(same)} pairs, from which {folds} folds cannot be made")
    if same.all() or not same.any():
        raise UserError(f"{name} needs pairs of both kinds, but all of its pairs are of one kind")


def verify(
    module: torch.nn.Module,
    pairs: Pairs,
    image_size: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable = iter,
    max_megapixels: float = MAX_MEGAPIXELS,
    mirror: bool = True,
) -> VerificationResult | None:
    """Verification of the bare net in evaluation mode, the same on all ranks; None if embeddings are not finite.

    mirror: add the features of an image and of its mirror image.
    """
    batch_size = pairs.batch_size(batch_size)
    training = module.training
    module.eval()
    try:
        embeddings = embed(
            of_pixels(lambda inputs: module(inputs).embeddings, device, dtype),
            pairs.images,
            pairs.rows,
            image_size,
            batch_size,
            mirror=mirror,
            progress=progress,
            max_megapixels=max_megapixels,
        )
    except CorruptImage as error:
        of_file = isinstance(pairs.images, EncodedImages)
        remedy = "`prepare_data.py inspect --check full` names such images, take them out"
        remedy = "get the file again, or write it without that pair" if of_file else remedy
        raise UserError(f"verification on {pairs.name}: {error}: {remedy}") from error
    module.train(training)
    embeddings = embeddings.cpu().numpy()
    if not np.isfinite(embeddings).all():
        return None
    return verify_pairs(embeddings[pairs.left], embeddings[pairs.right], pairs.same)
