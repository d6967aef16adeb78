"""Sets of embeddings that are made up."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_set(folder: Path, names, vectors, files: int = 3, dtype=np.float32) -> Path:
    """As `embed.py` writes it, in so many files; row r + 10 is called image_r."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(names)), files)):
        values = pa.array(np.asarray(vectors[part], dtype).ravel())
        columns = {
            "row": pa.array(part + 10),
            "path": pa.array([f"image_{each}" for each in part], pa.string()),
            "name": pa.array([names[each] for each in part], pa.array(list(names)).type),
            "embedding": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
            "norm": pa.array(np.ones(len(part), np.float32)),
        }
        pq.write_table(pa.table(columns), folder / f"train-{number:05d}-of-{files:05d}.parquet")
    return folder


def people(rng, identities: int, dim: int, noise: float, most: int = 12):
    """Directions of people (float64 [I, D]), whose each image is (int64 [n]), and the images (float64 [n, D])."""
    directions = unit(rng.normal(size=(identities, dim)))
    whose = np.repeat(np.arange(identities), rng.integers(1, most + 1, identities))
    return directions, whose, unit(directions[whose] + noise * rng.normal(size=(len(whose), dim)) / np.sqrt(dim))
