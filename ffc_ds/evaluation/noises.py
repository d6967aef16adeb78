"""Lists of wrong images in identification sets, such as InsightFace's of MegaFace (arXiv 1801.07698, appendix)."""

import os
from pathlib import Path

import numpy as np

from ffc_ds.distributed import rank
from ffc_ds.errors import UserError
from ffc_ds.evaluation.image_files import ImageFiles
from ffc_ds.evaluation.list_images import ENDINGS
from ffc_ds.progress import say


def leave_out_noises(
    lists: list[str], probes: ImageFiles, subjects: np.ndarray, distractors: ImageFiles
) -> tuple[ImageFiles, np.ndarray, ImageFiles]:
    """Probes with their subjects (int64 [probes]), and distractors, without the images that the lists name.

    A line is a path, or its end, after a tab where there is one; endings, and blanks for underscores, do not matter, as
    facescrub_noises.txt names files (`Adam_Sandler_558.png`) and megaface_noises.txt their paths (`100/1@N00/3_0.jpg`).
    InsightFace keeps both as images that are never found, or are always: probes become the mean of their person.

    Rank 0 says how many are left out. Raises UserError for a list that cannot be read or names none of the images, and
    if nobody keeps two.
    """
    wrong = [np.zeros(len(images), dtype=bool) for images in (probes, distractors)]
    for path in lists:
        named = _read(path)
        found = [_among(named, images.paths) for images in (probes, distractors)]
        if named and not any(each.any() for each in found):
            raise UserError(f"none of the {len(named):,} images in {path} is a probe or a distractor: check the list")
        if rank() == 0:
            counts = [f"{each.sum():,} of {len(each):,}" for each in found]
            say(f"{path}: left out {counts[0]} probes and {counts[1]} distractors")
        wrong = [before | each for before, each in zip(wrong, found, strict=True)]
    kept = np.flatnonzero(~wrong[0])
    _, place, counts = np.unique(subjects[kept], return_inverse=True, return_counts=True)
    kept = kept[counts[place] >= 2]
    if not len(kept) or wrong[1].all():
        raise UserError(f"{', '.join(lists)} leave nobody to find in {probes.name}, or nobody in {distractors.name}")
    return _chosen(probes, kept), subjects[kept], _chosen(distractors, np.flatnonzero(~wrong[1]))


def _read(path: str) -> set[tuple[str, ...]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list of noises {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return {_parts(line.split("\t")[-1].strip()) for line in lines if line.strip() and not line.startswith("#")}


def _parts(path: str) -> tuple[str, ...]:
    stem, ending = os.path.splitext(path)
    return tuple((stem if ending.lower() in ENDINGS else path).replace(" ", "_").split("/"))


def _among(named: set[tuple[str, ...]], paths: list[str]) -> np.ndarray:
    lengths = {len(each) for each in named}
    return np.array([any(parts[-length:] in named for length in lengths) for parts in map(_parts, paths)], dtype=bool)


def _chosen(images: ImageFiles, rows: np.ndarray) -> ImageFiles:
    return ImageFiles([images.paths[row] for row in rows], images.name)
