"""Folders of IJB-B (Whitelam et al., CVPRW 2017) and IJB-C (Maze et al., ICB 2018), in the form of InsightFace."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.data.file_kind import file_kind
from ffc_ds.errors import UserError
from ffc_ds.evaluation.alignment import AlignedImages
from ffc_ds.evaluation.templates import Templates

POINTS = [f"{axis}{i}" for i in range(1, 6) for axis in "xy"]
IMAGES, POINTS_FILE, PAIRS_FILE = "_face_tid_mid.txt", "_name_5pts_score.txt", "_template_pair_label.txt"
GALLERIES, PROBES = (("G1", "G2"), ("S1", "S2")), "_1N_probe_mixed.csv"


@dataclass(frozen=True, eq=False)
class SubjectTemplates:
    """Templates (int64 [n], their numbers) and the subject (int64 [n]) of each: a gallery, or probes."""

    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True, eq=False)
class IJB:
    """The protocol: templates; pairs of their numbers (int32 [n] or None) with their truth (bool [n]) for 1:1;
    galleries and probes (empty and None without them) for 1:N."""

    name: str
    templates: Templates
    left: np.ndarray | None
    right: np.ndarray | None
    same: np.ndarray | None
    galleries: dict[str, SubjectTemplates]
    probes: SubjectTemplates | None


def read_ijb(
    folder: str, detector_score: bool = True, feature_norm: bool = True, max_megapixels: float = MAX_MEGAPIXELS
) -> IJB:
    """Read the folder that holds `loose_crop` (images) and `meta` with, named by the set (`ijbb` or `ijbc`),

        ijbc_face_tid_mid.txt              image, template, media
        ijbc_name_5pts_score.txt           image, x and y of five landmarks, score of the face detector
        ijbc_template_pair_label.txt       template, template, 1 for the same subject   (for 1:1)
        ijbc_1N_gallery_G1.csv, _G2.csv    template, subject, ... below a heading       (for 1:N)
        ijbc_1N_probe_mixed.csv            likewise

    IJB-B calls its galleries ijbb_1N_gallery_S1.csv and _S2.csv. A template is the sum over its media of the mean over
    the images of each medium, of features that are weighted by the score of the detector if `detector_score`, and
    scaled to length 1 unless `feature_norm`. A pair takes 9 bytes; images stay where they are.

    Raises UserError, with file and reason, where these files are missing, malformed or contradict each other.
    """
    meta, crops = Path(folder) / "meta", Path(folder) / "loose_crop"
    prefix = _prefix(meta)
    listed = _read(meta / f"{prefix}{IMAGES}", {"image": pa.string(), "template": pa.int32(), "media": pa.int64()})
    points = _read(
        meta / f"{prefix}{POINTS_FILE}", {"image": pa.string()} | dict.fromkeys([*POINTS, "score"], pa.float64())
    )
    if len(np.unique(points["image"])) < len(points["image"]):
        raise UserError(f"{meta / (prefix + POINTS_FILE)} has more than one line for some image")
    rows = _places(points["image"], listed["image"], f"{meta / (prefix + POINTS_FILE)} has no line for image")
    landmarks = np.stack([points[name] for name in POINTS], axis=1).reshape(-1, 5, 2)[rows]
    score = points["score"][rows]
    _check_points(listed["image"], landmarks, score, meta / f"{prefix}{POINTS_FILE}")
    _check_crops(crops, listed["image"])

    ids, group = np.unique(listed["template"], return_inverse=True)
    weight = _media_weight(group, listed["media"]) * (score if detector_score else 1)
    images = AlignedImages(str(crops), listed["image"], landmarks, max_megapixels)
    left = right = same = None
    if (meta / f"{prefix}{PAIRS_FILE}").exists():
        left, right, same = _read_pairs(meta / f"{prefix}{PAIRS_FILE}", ids)
    galleries, probes = _read_search(meta, prefix, ids)
    if same is None and probes is None:
        raise UserError(
            f"{meta} has neither {prefix}{PAIRS_FILE} for 1:1 nor {prefix}{PROBES} for 1:N: get one of them"
        )
    return IJB(folder, Templates(images, group, weight, not feature_norm), left, right, same, galleries, probes)


def _prefix(meta: Path) -> str:
    found = sorted(path.name.removesuffix(IMAGES) for path in meta.glob(f"*{IMAGES}"))
    if len(found) != 1:
        raise UserError(
            f"{meta} must hold one file called ijbb{IMAGES} or ijbc{IMAGES}, and has {', '.join(found) or 'none'}: "
            "give the folder that holds meta and loose_crop"
        )
    return found[0]


def _read(path: Path, columns: dict[str, pa.DataType], heading: bool = False) -> dict[str, np.ndarray]:
    """Columns of a table without missing values: all of a .txt, or the first ones of a .csv with a heading."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline().strip()
        separator = "," if heading else "\t" if "\t" in first else " "
        names = first.split(",")[: len(columns)] if heading else list(columns)
        kinds = dict(zip(names, columns.values(), strict=True))
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=None if heading else names),
            csv.ParseOptions(delimiter=separator, quote_char=False),
            csv.ConvertOptions(column_types=kinds, include_columns=names, null_values=[], strings_can_be_null=False),
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or _other_kind(path) or str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be used ({reason}): each line must hold {', '.join(columns)}") from None
    return {
        column: table[name].to_numpy() if kinds[name] != pa.string() else np.array(table[name].to_pylist(), dtype=str)
        for column, name in zip(columns, names, strict=True)
    }


def _other_kind(path: Path) -> str | None:
    kind = file_kind(path)
    return None if kind in ("a text", "empty", None) else f"it is {kind}"


def _places(known: np.ndarray, wanted: np.ndarray, complaint: str) -> np.ndarray:
    """Position in `known` (each once) of each of `wanted`. Raises UserError, with `complaint`, for one not there."""
    order = np.argsort(known)
    place = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
    if (missing := known[order[place]] != wanted).any():
        raise UserError(f"{complaint} {wanted[missing][0]} ({missing.sum():,} such lines in all)")
    return order[place]


def _check_points(names: np.ndarray, landmarks: np.ndarray, score: np.ndarray, path: Path) -> None:
    sound = np.isfinite(landmarks).all((1, 2)) & np.isfinite(score) & (np.ptp(landmarks, axis=1) > 0).any(1)
    if not sound.all():
        raise UserError(f"{path}: landmarks or score of image {names[~sound][0]} are not finite, or all in one place")


def _check_crops(crops: Path, names: np.ndarray) -> None:
    try:
        there = np.array(os.listdir(crops), dtype=str)
    except OSError as error:
        raise UserError(f"folder of images {crops}: {error.strerror}") from None
    missing = names[~np.isin(names, there)]
    if len(missing):
        raise UserError(f"{crops} lacks {len(missing):,} of {len(names):,} images, {missing[0]} first")


def _media_weight(group: np.ndarray, media: np.ndarray) -> np.ndarray:
    """One over the number of images that share an image's template and medium."""
    _, medium = np.unique(media, return_inverse=True)
    _, both, counts = np.unique(group * (medium.max() + 1) + medium, return_inverse=True, return_counts=True)
    return 1 / counts[both]


def _read_pairs(path: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = _read(path, {"first template": pa.int32(), "second template": pa.int32(), "label": pa.int8()})
    label = pairs.pop("label")
    if not np.isin(label, (0, 1)).all() or len(np.unique(label)) != 2:
        raise UserError(f"{path}: labels must be 0 and 1, and both must occur")
    left, right = (
        _places(ids, side, f"{path} names a template without images,").astype(np.int32) for side in pairs.values()
    )
    return left, right, label == 1


def _read_search(
    meta: Path, prefix: str, ids: np.ndarray
) -> tuple[dict[str, SubjectTemplates], SubjectTemplates | None]:
    names = max(GALLERIES, key=lambda pair: sum(_gallery(meta, prefix, name).exists() for name in pair))
    paths = {name: _gallery(meta, prefix, name) for name in names} | {"probes": meta / f"{prefix}{PROBES}"}
    missing = [path.name for path in paths.values() if not path.exists()]
    if len(missing) == len(paths):
        return {}, None
    if missing:
        raise UserError(
            f"{meta} has some of the files for 1:N, but not {', '.join(missing)}: get them, or remove the rest"
        )
    read = {name: _read_subjects(path, ids) for name, path in paths.items()}
    return read, read.pop("probes")


def _gallery(meta: Path, prefix: str, name: str) -> Path:
    return meta / f"{prefix}_1N_gallery_{name}.csv"


def _read_subjects(path: Path, ids: np.ndarray) -> SubjectTemplates:
    table = _read(path, {"template": pa.int32(), "subject": pa.int64()}, heading=True)
    if not len(table["template"]):
        raise UserError(f"{path} names no template")
    rows = np.unique(np.stack([table["template"], table["subject"]]), axis=1)
    if (shared := rows[0, 1:] == rows[0, :-1]).any():
        raise UserError(f"{path}: template {rows[0, 1:][shared][0]} has more than one subject")
    return SubjectTemplates(_places(ids, rows[0], f"{path} names a template without images,"), rows[1])
