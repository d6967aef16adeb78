"""From a set of images to a folder of embeddings: each rank makes files of its own."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ffc_ds.data.faces import Faces
from ffc_ds.data.opening import load_faces
from ffc_ds.distributed import (
    broadcast_object,
    check_same,
    first_rank_first,
    join_launcher,
    rank,
    together,
    world_size,
)
from ffc_ds.embedding import both_sides
from ffc_ds.embedding_set.parts import DAMAGED, Parts
from ffc_ds.embedding_set.readable import readable_batches
from ffc_ds.embedding_set.settings import EmbeddingConfig
from ffc_ds.encoders.base import Encoder
from ffc_ds.encoders.opening import open_encoder
from ffc_ds.errors import UserError
from ffc_ds.progress import progress, say, waiting
from ffc_ds.shared_folder import open_shared


def embed_set(config: EmbeddingConfig) -> None:
    """Embed, on all ranks of the launcher together or in this process alone, what is not in `config.output_dir` yet.

    Columns of its files: row (int64) and path (of the image; null where it has none), name (of the identity: text, or
    int64 as in the set), embedding (`config.dtype` [dim], of length 1), norm (float32, its length before). Images that
    cannot be read are left out and listed in damaged.tsv. Memory does not grow with the number of images.

    Raises UserError for whatever cannot be used, files that are there and were made of something else, and embeddings
    that are not finite.
    """
    device = join_launcher()
    with waiting(f"opening {config.data}", shown=rank() == 0):
        columns = config.image_column, config.label_column
        faces = first_rank_first(lambda: load_faces(config.data, config.split, *columns, config.data_config))
    encoder = first_rank_first(lambda: open_encoder(config.model, config.onnx, device))
    parts = _parts(config, faces, encoder)
    check_same(parts.about, "give all hosts the same images and the same model")
    open_shared(parts.folder)
    missing = broadcast_object(together(lambda: parts.missing() if rank() == 0 else []))
    if rank() == 0 and len(missing) < parts.count:
        say(f"{parts.count - len(missing):,} of {parts.count:,} files are there")
    together(lambda: _embed(config, faces, encoder, parts, missing[rank() :: world_size()]))
    together(lambda: _report(parts, encoder.dim) if rank() == 0 else None)


def _parts(config: EmbeddingConfig, faces: Faces, encoder: Encoder) -> Parts:
    fields = {
        "row": pa.int64(),
        "path": pa.string(),
        "name": together(lambda: faces.names(0, 1).type),
        "embedding": pa.list_(getattr(pa, config.dtype)(), encoder.dim),
        "norm": pa.float32(),
    }
    about = encoder.about | {
        "content": faces.fingerprint,
        "image_column": config.image_column,
        "images": len(faces),
        "flip": config.flip,
        "dtype": config.dtype,
        "dim": encoder.dim,
        "file_images": config.file_images,
        "max_megapixels": config.max_megapixels,
    }
    return Parts(Path(config.output_dir), len(faces), config.file_images, about, pa.schema(fields))


def _embed(config: EmbeddingConfig, faces: Faces, encoder: Encoder, parts: Parts, own: list[int]) -> None:
    """Make the files with the numbers `own`."""
    size = config.batch_size

    def batches() -> Iterator[np.ndarray]:
        for number in own:
            rows = parts.rows(number)
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    read = readable_batches(faces, batches(), encoder.image_size, config.workers, config.max_megapixels)
    encode = both_sides(encoder) if config.flip else encoder
    total, begin = sum(len(parts.rows(number)) for number in own), time.monotonic()
    of_ranks = f", rank 0 of {world_size()}" * (world_size() > 1)
    with progress(desc=f"embed{of_ranks}", unit="images", total=total, shown=rank() == 0 and bool(own)) as bar:
        for number in own:
            rows, features, damaged = [], [torch.empty(0, encoder.dim)], []
            for batch in islice(read, -(-len(parts.rows(number)) // size)):
                rows.append(batch.rows)
                damaged += batch.damaged
                if len(batch.rows):
                    features.append(encode(batch.pixels).float())
                bar.update(len(batch.rows) + len(batch.damaged))
                pace = bar.n * world_size() / (time.monotonic() - begin)
                bar.set_postfix({"images/s": f"{pace:,.0f}"}, refresh=False)
            features = torch.cat([each.to(features[-1].device) for each in features]).cpu().numpy()
            parts.write(number, _columns(faces, parts, number, np.concatenate(rows), features), damaged)


def _columns(faces: Faces, parts: Parts, number: int, rows: np.ndarray, features: np.ndarray) -> list[pa.Array]:
    """The columns of a file: of the images `rows` (int64 [k]) that can be read, with features float32 [k, D]."""
    if not np.isfinite(features).all():
        raise UserError(f"the model's embeddings of {faces.name} are not finite: it cannot be used")
    all_rows = parts.rows(number)
    start, count = int(all_rows[0]), len(all_rows)
    kept = pa.array(rows - start)
    norms = np.linalg.norm(features, axis=1)
    unit = features / np.where(norms == 0, 1, norms)[:, None]
    kind = parts.schema.field("embedding").type
    embeddings = pa.array(unit.ravel().astype(kind.value_type.to_pandas_dtype()), kind.value_type)
    return [
        pa.array(rows),
        faces.paths(start, count).take(kept),
        faces.names(start, count).take(kept),
        pa.FixedSizeListArray.from_arrays(embeddings, type=kind),
        pa.array(norms, pa.float32()),
    ]


def _report(parts: Parts, dim: int) -> None:
    """List what was left out, and say what is there. Raises UserError if that is nothing."""
    damaged = list(parts.damaged())
    if damaged:
        lines = (f"{where}\t{' '.join(reason.split())}\n" for where, reason in damaged)
        parts.note_damaged("".join(lines))
    if len(damaged) == parts.images:
        raise UserError(f"no image can be used (the first one: {': '.join(damaged[0])})")
    left_out = f"; damaged images left out: {len(damaged):,}, see {DAMAGED} there" if damaged else ""
    say(f"{parts.images - len(damaged):,} embeddings of {dim} numbers in {parts.folder}{left_out}")
