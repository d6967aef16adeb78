"""What is proposed, from centers and searches: a table that people look through."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ffc_ds.cleaning.centers import Centers, find_centers, nearest_images
from ffc_ds.cleaning.search import Found, Search, Vectors
from ffc_ds.cleaning.settings import CleaningConfig
from ffc_ds.cleaning.vectors import Embeddings

SCHEMA = pa.schema(
    {
        "kind": pa.string(),
        "identity": pa.string(),
        "other_identity": pa.string(),
        "row": pa.int64(),
        "path": pa.string(),
        "other_row": pa.int64(),
        "other_path": pa.string(),
        "score": pa.float32(),
        "own": pa.float32(),
        "accepted": pa.bool_(),
        "content": pa.string(),
    }
)


class Set(NamedTuple):
    """A set, and what is known of its identities."""

    embeddings: Embeddings
    centers: Centers
    nearest: np.ndarray
    """int64 [I], as of `nearest_images`."""

    @classmethod
    def read(cls, embeddings: Embeddings, belongs: float, scratch: Path, device: torch.device) -> "Set":
        centers = find_centers(embeddings, belongs, scratch, device)
        return cls(embeddings, centers, nearest_images(embeddings, centers.own))

    def center(self, identities: np.ndarray) -> torch.Tensor:
        return self.centers.unit[torch.from_numpy(identities)]

    def names(self, identities: np.ndarray) -> pa.Array:
        """Of these identities (int64 [k]) as texts, null for -1."""
        return self.embeddings.index.names.take(pa.array(identities, mask=identities < 0)).cast(pa.string())


class Proposals(NamedTuple):
    """Of one kind, clearest first; int64 [k] and float32 [k]. Images and identities are numbers, -1 for none."""

    kind: str
    identity: np.ndarray
    other_identity: np.ndarray
    image: np.ndarray
    other_image: np.ndarray
    score: np.ndarray
    own: np.ndarray
    """Cosine of the image with its own identity's center; NaN where that is no reason."""

    def table(self, of: Set, other: Set) -> pa.Table:
        """As the user sees them; `other` is the set that the other images are in."""
        row, path = of.embeddings.rows_and_paths(self.image)
        other_row, other_path = other.embeddings.rows_and_paths(self.other_image)
        columns = [pa.array([self.kind] * len(self.image), pa.string()), of.names(self.identity)]
        columns += [other.names(self.other_identity), row, path, other_row, other_path, pa.array(self.score)]
        columns += [pa.array(self.own, from_pandas=True), pa.array(np.ones(len(self.image), bool))]
        columns.append(pa.array([(of.embeddings.about or {}).get("content")] * len(self.image), pa.string()))
        return pa.table([column.cast(kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


def find_proposals(
    config: CleaningConfig, of: Set, against: Set | None, scratch: Path, device: torch.device
) -> Iterator[Proposals]:
    """All kinds that are asked for, one after another; all ranks call it."""

    def run(search: Search, desc: str) -> Found:
        return search.run(scratch / desc.replace(" ", "_"), device, desc)

    everybody = Vectors(of.center, np.arange(len(of.nearest)))
    parents = everybody.numbers  # the identity that each ends in
    if "merge" in config.find:
        merges, parents = _merges(config, of, run)
        yield merges
    if {"mislabelled", "stranger"} & set(config.find):
        for each in _wrong_images(config, of, everybody, parents, run):
            if each.kind in config.find:
                yield each
    if "duplicate" in config.find:
        yield _duplicates(config, of, run)
    if against is not None:
        theirs = Vectors(against.center, np.arange(len(against.nearest)))
        found = run(Search(everybody, theirs, config.same_person), "look for people of the other set")
        identities = _clearest(found.cosine)
        other = found.key[identities]
        images = of.nearest[identities], against.nearest[other]
        yield Proposals("overlap", identities, other, *images, found.cosine[identities], _none(identities))


Run = Callable[[Search, str], Found]


def _merges(config: CleaningConfig, of: Set, run: Run) -> tuple[Proposals, np.ndarray]:
    """Each identity with the most similar of those that have more images; and the identity that each ends in."""
    order = np.argsort(-of.embeddings.index.counts, kind="stable")
    vectors = Vectors(of.center, order)
    found = run(Search(vectors, vectors, config.same_person, earlier=True), "compare identities")
    places = _clearest(found.cosine)
    identities, others = order[places], found.key[places]
    ends = np.arange(len(order))
    ends[identities] = others
    while (ends[ends] != ends).any():
        ends = ends[ends]
    images = of.nearest[identities], of.nearest[others]
    return Proposals("merge", identities, others, *images, found.cosine[places], _none(places)), ends


def _wrong_images(config: CleaningConfig, of: Set, everybody: Vectors, ends: np.ndarray, run: Run) -> list[Proposals]:
    """Images that belong to another identity, and those that belong to none. ends: int64 [I], as of `_merges`."""
    own, identities = of.centers.own, of.embeddings.identities()
    doubtful = np.flatnonzero(own < config.belongs)
    barred = identities[doubtful]
    found = run(Search(Vectors(of.embeddings.unit, doubtful), everybody, config.belongs, barred), "compare images")
    elsewhere = (found.key >= 0) & (ends[found.key] != ends[barred])
    places = _clearest(np.where(elsewhere, found.cosine - own[doubtful], -np.inf))
    images, others = doubtful[places], found.key[places]
    scores = found.cosine[places]
    wrong = Proposals("mislabelled", barred[places], others, images, of.nearest[others], scores, own[images])
    alone = (found.key < 0) & (own[doubtful] < config.stranger) & (of.centers.agreeing[barred] > 0)
    places = _clearest(np.where(alone, -own[doubtful], -np.inf))
    images, home = doubtful[places], barred[places]
    nobody = np.full(len(places), -1)
    return [wrong, Proposals("stranger", home, nobody, images, of.nearest[home], own[images], own[images])]


def _duplicates(config: CleaningConfig, of: Set, run: Run) -> Proposals:
    """Each image with the most similar of those that are nearer to the others of their identity."""
    own, identities = of.centers.own, of.embeddings.identities()
    order = np.argsort(-np.nan_to_num(own, nan=-2), kind="stable")
    vectors = Vectors(of.embeddings.unit, order)
    found = run(Search(vectors, vectors, config.same_image, earlier=True), "compare pairs of images")
    places = _clearest(found.cosine)
    images, others = order[places], found.key[places]
    return Proposals(
        "duplicate", identities[images], identities[others], images, others, found.cosine[places], own[images]
    )


def _clearest(scores: np.ndarray) -> np.ndarray:
    """Places of the finite scores, the largest first."""
    order = np.argsort(-scores, kind="stable")
    return order[: np.isfinite(scores).sum()]


def _none(like: np.ndarray) -> np.ndarray:
    return np.full(len(like), np.nan, np.float32)
