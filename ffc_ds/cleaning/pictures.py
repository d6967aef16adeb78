"""The clearest proposals in pictures."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.decoding import decode, read_image_file
from ffc_ds.data.faces import Faces
from ffc_ds.evaluation.figures import pair_pictures

SIDE = 112  # pixels


def draw_proposals(tables: dict[str, pa.Table], faces: Faces | None, most: int, path: Path) -> bool:
    """Draw up to `most` pairs of each kind, those whose pictures can be had: from `faces`, or from files at their paths
    (then those of another set, too). Returns whether there was any."""
    rows = {}
    for kind, table in tables.items():
        pairs = []
        for each in table.slice(0, most).to_pylist():
            of_set = kind != "overlap"
            left = _picture(faces, each["row"], each["path"])
            right = _picture(faces if of_set else None, each["other_row"], each["other_path"])
            if left is not None:
                right = np.full_like(left, 255) if right is None else right
                pairs.append((np.concatenate([left, right], axis=1), each["score"]))
        if pairs:
            rows[f"{kind} ({len(table):,})"] = pairs
    if rows:
        pair_pictures(rows, path)
    return bool(rows)


def _picture(faces: Faces | None, row: int | None, path: str | None) -> np.ndarray | None:
    """uint8 [SIDE, SIDE, 3], or None if there is none."""
    try:
        if row is not None and faces is not None:
            (encoded,) = faces.encoded(np.array([row]))
            return decode(encoded, SIDE)
        return decode(read_image_file(path), SIDE) if path is not None else None
    except (CorruptImage, OSError):
        return None
