"""Pairs of images or videos to verify, from every file that the field has them in."""

import os
import re
from dataclasses import dataclass

import numpy as np

from ffc_ds.errors import UserError
from ffc_ds.evaluation.cfp import read_cfp
from ffc_ds.evaluation.image_files import ImageFiles
from ffc_ds.evaluation.list_forms import Image, Listed, read_list
from ffc_ds.evaluation.list_images import ListImages
from ffc_ds.evaluation.templates import Templates
from ffc_ds.evaluation.verification import FOLDS
from ffc_ds.evaluation.verifier import Pairs, check_verifiable

NAMED = 5  # missing images


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """Pairs of templates (int64 [n], their numbers) with their truth (bool [n]); folds as `verify_pairs` takes them."""

    templates: Templates
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: int | np.ndarray = FOLDS


def read_pairs(path: str, folder: str | None = None) -> TemplatePairs:
    """The pairs of an InsightFace `.bin`, a list, or CFP's protocol, whose images are in `folder`, or beside it.

    A list has one of `list_forms.FORMS`, and images are found as `ListImages` finds them; a folder of frames, a video,
    counts as one. Folds are those that the list names or counts, or ten in its order. Of Kaggle's matchpairsX.csv and
    mismatchpairsX.csv either stands for both. CFP's protocol is given as the folder Protocol/Split/FP or FF.

    Raises UserError for a file that is none of these, images that are missing, and pairs that cannot be verified.
    """
    if path.lower().endswith((".bin", ".pkl", ".pickle")):
        pairs = Pairs.from_bin(path)
        templates = Templates.means(pairs.images, np.arange(len(pairs.rows)))
        return TemplatePairs(templates, pairs.left, pairs.right, pairs.same)
    if os.path.isdir(path):
        listed, beside = read_cfp(path)
    else:
        listed, beside = _halves(path), os.path.dirname(path)
    images, numbers = [*listed.first, *listed.second], {}
    left, right = np.array([numbers.setdefault(image, len(numbers)) for image in images], np.int64).reshape(2, -1)
    files = _found(list(numbers), beside if folder is None else folder, path)
    group = np.repeat(np.arange(len(files)), [len(each) for each in files])
    templates = Templates.means(ImageFiles([file for each in files for file in each], path), group)
    same, folds = np.array(listed.same, bool), listed.folds
    check_verifiable(path, same, folds if isinstance(folds, int) else len(set(folds)))
    return TemplatePairs(templates, left, right, same, folds if isinstance(folds, int) else np.array(folds))


def _halves(path: str) -> Listed:
    """A list, with its other half if it is one of two for either kind of pairs."""
    folder, name = os.path.split(path)
    half = re.fullmatch(r"(?:mis)?match(pairs.*)", name)
    if half is None:
        return read_list(path)
    listed, others = (read_list(os.path.join(folder, f"{kind}{half[1]}")) for kind in ("match", "mismatch"))
    return Listed(listed.first + others.first, listed.second + others.second, listed.same + others.same)


def _found(images: list[Image], folder: str, path: str) -> list[list[str]]:
    """The files of each image. Raises UserError if any have none."""
    folder = folder or "."
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder of images {folder} for {path}: give it by --images")
    places = ListImages(folder)
    files = [places.find(image) for image in images]
    missing = [" ".join(map(str, image)) for image, found in zip(images, files, strict=True) if not found]
    if missing:
        raise UserError(
            f"{path} names {len(missing):,} of {len(images):,} images that are not in {folder}: "
            f"{', '.join(missing[:NAMED])}{', ...' if len(missing) > NAMED else ''}. Give the folder of the images by "
            f"--images; image i of a person may be name/name_i, name/i or name_i, with zeros before i and any ending"
        )
    return files
