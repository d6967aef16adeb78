"""A copy of a set without what `launch/clean.py` found to be wrong in it."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ffc_ds.cleaning.settings import KINDS
from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.failing_disk import FailingDisk
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.importers.inspection import BATCH, opened_faces
from ffc_ds.data.importers.plan import Broken, Plan, Record, check_count
from ffc_ds.data.opening import load_faces
from ffc_ds.errors import UserError
from ffc_ds.progress import say

COLUMNS = {
    "kind": pa.string(),
    "identity": pa.string(),
    "other_identity": pa.string(),
    "row": pa.int64(),
    "accepted": pa.bool_(),
    "content": pa.string(),
}


def plan_cleaned(
    source: str,
    proposals: str,
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
    data_config: str | None = None,
    shard_images: int = 20_000,
) -> Plan:
    """Plan a copy of a set to which the accepted proposals of clean.py are applied.

    Args:
        source: the set that was embedded: anything that training takes.
        proposals: the parquet file that clean.py wrote; rows whose `accepted` is false are passed over.
        split: which of its splits, as embed.py was given it.
        image_column: holds images or their encoded bytes.
        label_column: holds the identities.
        data_config: which of its configurations, where there are several.
        shard_images: images of one parquet file.
    """
    check_count(shard_images)
    faces = load_faces(source, split, image_column, label_column, data_config)
    index, accepted = IdentityIndex.build(faces.labels), _accepted(Path(proposals))
    others = set(accepted["content"].unique().to_pylist()) - {faces.fingerprint, None}
    if others:
        raise UserError(f"{proposals} was made of other data than {faces.name}, or it changed since: embed it anew")
    before = np.empty(len(faces), np.int64)
    before[index.images] = np.repeat(np.arange(index.identities), index.counts)
    names = index.names.cast(pa.string())
    after, kept = clean_labels(before, names, accepted, f"{proposals} is not of {faces.name}")
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise UserError(f"{proposals} leaves no image of {faces.name}: accept fewer proposals")
    identities, labels = np.unique(after[rows], return_inverse=True)
    if not faces.named:  # numbers stay what they are, or classes of an earlier run would be somebody else's
        labels = index.names.to_numpy()[after[rows]]
    say(
        f"{len(rows):,} of {len(faces):,} images are kept, {np.sum(after != before, where=kept):,} of them elsewhere; "
        f"{len(identities):,} of {index.identities:,} identities are left"
    )
    opened = source, split, image_column, label_column, str(datasets.config.HF_DATASETS_CACHE), data_config
    about = {
        "import": "cleaned",
        "content": faces.fingerprint,
        "image_column": image_column,
        "proposals": hashlib.blake2b(repr(accepted.to_pydict()).encode(), digest_size=8).hexdigest(),
        "images of a file": shard_images,
    }
    jobs = []
    for start in range(0, len(rows), shard_images):
        part = slice(start, start + shard_images)
        of_part = names.take(pa.array(after[rows[part]])).dictionary_encode()  # each name once: jobs wait in memory
        jobs.append(partial(read_rows, opened, rows[part], labels[part], of_part))
    return Plan(about, jobs)


def clean_labels(
    before: np.ndarray, names: pa.Array, accepted: pa.Table, complaint: str
) -> tuple[np.ndarray, np.ndarray]:
    """The identity of each image (int64 [n], `before` and after), and whether it is kept (bool [n]).

    Mislabelled images go first, then identities are joined, then those that overlap go with all that they have by then.
    names: text [I]. Raises UserError, with the `complaint`, for rows or identities that the set has otherwise.
    """
    after, kept, parents = before.copy(), np.ones(len(before), bool), np.arange(len(names))
    rows = accepted["row"].to_numpy()
    identities, others = (_numbers(accepted[name], names) for name in ("identity", "other_identity"))
    kinds = {kind: pc.equal(accepted["kind"], kind).to_numpy() for kind in KINDS}
    inside = (rows >= 0) & (rows < len(before))
    known = inside & (identities >= 0) & (before[np.where(inside, rows, 0)] == identities)
    known &= (others >= 0) | kinds["stranger"] | kinds["overlap"]
    if not known.all():
        raise UserError(f"{complaint}: it has {accepted.slice(int(np.argmin(known)), 1).to_pylist()[0]}")

    def end(identity: int) -> int:
        while parents[identity] != identity:
            parents[identity] = identity = parents[parents[identity]]
        return identity

    after[rows[kinds["mislabelled"]]] = others[kinds["mislabelled"]]
    for one, other in zip(identities[kinds["merge"]].tolist(), others[kinds["merge"]].tolist(), strict=True):
        parents[end(one)] = end(other)
    while (parents[parents] != parents).any():
        parents = parents[parents]
    after = parents[after]
    kept[rows[kinds["stranger"] | kinds["duplicate"]]] = False
    return after, kept & ~np.isin(after, parents[identities[kinds["overlap"]]])


def read_rows(opened: tuple, rows: np.ndarray, labels: np.ndarray, names: pa.Array) -> Iterator[Record | Broken]:
    """The images in `rows` (int64 [k], ascending) of the set that is `opened` so (see `opened_faces`), with labels and
    names of identities."""
    faces = opened_faces(*opened)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        first, end = int(part[0]), int(part[-1]) + 1
        paths = faces.paths(first, end - first).take(pa.array(part - first)).to_pylist()
        for place, (image, path) in enumerate(zip(faces.encoded(part), paths, strict=True), start):
            key = path or f"row {rows[place]} of {faces.name}"
            if isinstance(image, FailingDisk):
                raise image
            if isinstance(image, CorruptImage):
                yield Broken(key, str(image))
            else:
                yield Record(key, image, int(labels[place]), names[place].as_py())


def _accepted(path: Path) -> pa.Table:
    """The accepted rows of a file of proposals, with `COLUMNS` of these types."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: give the proposals.parquet that clean.py wrote") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as proposals ({' '.join(str(error).split()):.200})") from None
    columns = {}
    for name, kind in COLUMNS.items():
        if name not in table.column_names:
            raise UserError(f"{path} is no file of proposals of clean.py: it has no column {name}")
        try:
            columns[name] = table[name].cast(kind)
        except pa.ArrowException as error:
            reason = f"its column {name} is not of {kind} ({' '.join(str(error).split()):.200})"
            raise UserError(f"{path} is no file of proposals of clean.py: {reason}") from None
    table = pa.table(columns)
    unknown = set(table["kind"].unique().to_pylist()) - set(KINDS)
    if unknown or table["row"].null_count:
        raise UserError(f"{path} has proposals of an unknown kind ({unknown}) or without a row")
    return table.filter(pc.fill_null(table["accepted"], False))


def _numbers(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """The place of each text among the names, int64; -1 for null, and for what is not there."""
    found = pc.index_in(column.combine_chunks(), value_set=names, skip_nulls=True)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)
