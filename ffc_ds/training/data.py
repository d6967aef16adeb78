"""What a run trains on and what it is verified on: images, their identities, pairs of unseen people."""

from collections.abc import Callable
from pathlib import Path

import datasets

from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex, cached, load_or_build
from ffc_ds.data.loading import has_split
from ffc_ds.data.training_faces import TrainingFaces, load_sets
from ffc_ds.distributed import first_rank_first, rank, together
from ffc_ds.errors import shared
from ffc_ds.evaluation.verifier import Pairs
from ffc_ds.progress import say, waiting


def open_training_data(config: Config) -> tuple[TrainingFaces, IdentityIndex, Pairs]:
    """The training images, the identities among them that are trained on, and the verification pairs.

    Indices are built by one process of each host and memory-mapped by all. Raises UserError on all ranks.
    """
    data = config.data
    if data.train is None:
        raise shared("There is nothing to train on: give --data.train a folder, a name on the hub, or a list.")
    faces, everybody = _opened(data.train, data.split, config)
    part = _Parts(faces.fingerprint, config)
    index = everybody
    if data.min_images > 1:
        index = part(f"from-{data.min_images}", lambda: everybody.at_least(data.min_images))
        if rank() == 0:
            left_out = f"{everybody.identities - index.identities:,} of {everybody.identities:,} identities left out"
            say(f"data.min_images {data.min_images}: {left_out}")
    evaluation = config.eval
    if evaluation.bin:
        pairs = together(lambda: Pairs.from_bin(evaluation.bin))
        return TrainingFaces(faces, index), index, pairs
    first = data.train if isinstance(data.train, str) else data.train[0]
    if evaluation.split != data.split and together(lambda: has_split(first, evaluation.split)):
        unseen, held_out = _opened(first, evaluation.split, config)
        name = unseen.name
    else:
        unseen, name = faces, f"{evaluation.holdout:.0%} of the identities, held out"
        index, held_out = part.split(index)
    pairs = together(lambda: Pairs.from_identities(unseen, name, held_out, evaluation.pairs, config.seed))
    return TrainingFaces(faces, index), index, pairs


def _opened(names, split: str, config: Config):
    def opened():
        faces = load_sets(names, split, config.data.image_column, config.data.label_column)
        return faces, load_or_build(faces.labels, faces.fingerprint, _cache())

    with waiting(f"opening {names}", shown=rank() == 0):
        return first_rank_first(opened)


def _cache() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "ffc_ds"


class _Parts:
    """Parts of the index of a dataset, by name in the same cache as the whole."""

    def __init__(self, fingerprint: str, config: Config):
        self.fingerprint, self.config = fingerprint, config

    def __call__(self, name: str, build: Callable[[], IdentityIndex]) -> IdentityIndex:
        return first_rank_first(lambda: cached(_cache() / f"identity-index-{self.fingerprint}-{name}", build))

    def split(self, index: IdentityIndex) -> tuple[IdentityIndex, IdentityIndex]:
        """For training and held out; both depend on the seed and on who is left out before."""
        share, seed = self.config.eval.holdout, self.config.seed
        name = f"from-{self.config.data.min_images}-{share:g}-{seed}"
        train = self(f"{name}-train", lambda: index.split(share, seed)[0])
        return train, self(f"{name}-held-out", lambda: index.split(share, seed)[1])
