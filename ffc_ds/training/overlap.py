"""People or images that are both trained on and verified on: figures on them say little about anybody else."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc

from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.distributed import broadcast_object, rank, together
from ffc_ds.evaluation.verifier import Pairs
from ffc_ds.progress import say

COMPARED = 50_000  # training images, evenly from all of them
BATCH = 1000


def tell_overlap(pairs: Pairs, unseen: tuple | None, faces, index: IdentityIndex) -> Pairs:
    """The pairs, whose name says so if people or images of them are trained on, as rank 0 does aloud.

    unseen: (faces, index) that the pairs were drawn from, where they have identities at all. Identities of two splits
    are the same by name only if they have names: numbers may begin anew in each.
    """
    found = broadcast_object(together(lambda: _overlap(pairs, unseen, faces, index) if rank() == 0 else None))
    if not found:
        return pairs
    if rank() == 0:
        say(f"WARNING: {pairs.name}: {found}. Figures on them do not show how strangers are told apart.")
    return replace(pairs, name=f"{pairs.name} ({found})")


def _overlap(pairs: Pairs, unseen: tuple | None, faces, index: IdentityIndex) -> str:
    complaints = []
    if unseen is not None and unseen[0].named and faces.named:
        names = unseen[1].names
        both = pc.sum(pc.is_in(names, value_set=index.names.cast(names.type))).as_py()
        if both:
            complaints.append(f"{both:,} of {len(names):,} people are trained on under the same name")
    same = _same_images(pairs, faces, index)
    if same:
        complaints.append(f"{same:,} of {len(pairs.rows):,} images are, byte for byte, training images")
    return ", ".join(complaints)


def _same_images(pairs: Pairs, faces, index: IdentityIndex) -> int:
    verified = set(_digests(pairs.images, pairs.rows))
    compared = min(COMPARED, len(index.images))
    places = np.arange(compared) * len(index.images) // compared
    return len(verified.intersection(_digests(faces, np.sort(index.images[places]))))


def _digests(images, rows: np.ndarray):
    for start in range(0, len(rows), BATCH):
        for image in images.encoded(rows[start : start + BATCH]):
            if isinstance(image, bytes):  # and no error in the place of one that cannot be read
                yield hashlib.blake2b(image, digest_size=16).digest()
