"""What a run trains on and what it is verified on: images, their identities, pairs of unseen people."""

from pathlib import Path

import datasets

from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex, cached, index_of
from ffc_ds.data.opening import FaceSet, open_set
from ffc_ds.data.training_faces import TrainingFaces, joined
from ffc_ds.distributed import first_rank_first, rank, together
from ffc_ds.errors import UserError, shared
from ffc_ds.evaluation.verifier import Pairs
from ffc_ds.progress import say, waiting
from ffc_ds.training.overlap import tell_overlap

DEFAULT_SPLIT = "test"


def open_training_data(config: Config) -> tuple[TrainingFaces, IdentityIndex, Pairs | None]:
    """The training images, the identities among them that are trained on, and the verification pairs, if any.

    Indices are built by one process of each host and memory-mapped by all. Raises UserError on all ranks.
    """
    if config.data.train is None:
        raise shared("There is nothing to train on: give --data.train a folder, a name on the hub, or a list.")
    sets = _open_sets(config)
    faces, everybody = _indexed(sets, config.data.split, config)
    index, fewest = everybody, config.data.min_images
    if fewest > 1:
        index = _part(everybody, f"{faces.fingerprint}-from-{fewest}", lambda: everybody.with_images(fewest))
        left_out = f"{everybody.identities - index.identities:,} of {everybody.identities:,} identities left out"
        _say(f"data.min_images {fewest}: {left_out}")
    if config.eval.bin:
        pairs = together(lambda: Pairs.from_bin(config.eval.bin))
        return TrainingFaces(faces, index), index, tell_overlap(pairs, None, faces, index)
    found = _other_split(sets[:1], config)
    if found is not None:
        unseen, of_unseen, pairs = found
        return TrainingFaces(faces, index), index, tell_overlap(pairs, (unseen, of_unseen), faces, index)
    if config.eval.holdout == 0:
        _say("eval.holdout 0: nobody is held out, and nothing is verified")
        return TrainingFaces(faces, index), index, None
    index, pairs = _hold_out(faces, index, config)
    return TrainingFaces(faces, index), index, pairs


def _open_sets(config: Config) -> list[FaceSet]:
    data = config.data
    names = [data.train] if isinstance(data.train, str) else data.train
    columns = data.image_column, data.label_column
    with waiting(f"opening {', '.join(names)}", shown=rank() == 0):
        return first_rank_first(lambda: [open_set(name, *columns, data.config) for name in names])


def _other_split(sets: list[FaceSet], config: Config):
    """Another split of the set, its index and its pairs; None if there is none, or none that was asked for serves."""
    wanted = config.eval.split
    split = wanted or DEFAULT_SPLIT
    if split == config.data.split or (wanted is None and split not in sets[0].splits):
        return None
    try:
        unseen, index = _indexed(sets, split, config)
        return unseen, index, together(lambda: _pairs(unseen, unseen.name, index, config))
    except UserError as error:
        if wanted is not None:
            raise shared(f"eval.split {split} cannot serve for verification: {error}") from error
        _say(f"split {split!r} cannot serve for verification ({error}): training identities are held out instead")
        return None


def _hold_out(faces, index: IdentityIndex, config: Config) -> tuple[IdentityIndex, Pairs]:
    """Both parts depend on the seed and on who is left out before."""
    share, seed = config.eval.holdout, config.seed
    name = f"{faces.fingerprint}-from-{config.data.min_images}-{share:g}-{seed}"
    try:
        train = _part(index, f"{name}-train", lambda: ~index.held_out(share, seed))
        held_out = _part(index, f"{name}-held-out", lambda: index.held_out(share, seed))
        called = f"{share:.0%} of the identities, held out"
        return train, together(lambda: _pairs(faces, called, held_out, config))
    except UserError as error:
        raise shared(
            f"{error}. Or verify on something else (--eval.bin, --eval.split), or on nothing (--eval.holdout 0)"
        ) from error


def _pairs(faces, name: str, index: IdentityIndex, config: Config) -> Pairs:
    return Pairs.from_identities(faces, name, index, config.eval.pairs, config.seed)


def _indexed(sets: list[FaceSet], split: str, config: Config):
    def indexed():
        faces = joined(sets, split, isinstance(config.data.train, str))
        return faces, index_of(faces, _cache())

    with waiting(f"numbering the identities of split {split}", shown=rank() == 0):
        return first_rank_first(indexed)


def _part(index: IdentityIndex, name: str, kept) -> IdentityIndex:
    """Part of an index, by name in the same cache as the whole; `kept()` is bool [I]."""
    folder = _cache() / f"identities-{name}"
    return first_rank_first(lambda: cached(folder, lambda allocate: index.where(kept(), allocate)))


def _cache() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "ffc_ds"


def _say(text: str) -> None:
    if rank() == 0:
        say(text)
