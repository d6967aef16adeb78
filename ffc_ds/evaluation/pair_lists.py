"""Lists of pairs in text files, in the forms of LFW's `pairs.txt` and YTF's `splits.txt`, with their images."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffc_ds.errors import UserError
from ffc_ds.evaluation.image_files import SUFFIXES, ImageFiles, images_below
from ffc_ds.evaluation.templates import Templates
from ffc_ds.evaluation.verifier import Pairs

FOLDS = 10


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """Pairs of templates (int64 [n], their numbers) with their truth (bool [n])."""

    templates: Templates
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: int = FOLDS


def read_pairs(path: str, folder: str | None = None) -> TemplatePairs:
    """The pairs of an InsightFace `.bin`, or of a list in a text file whose images are in `folder`, or beside the list.

    Each line of a list is a pair; `name i` is image i of a person, as name/name_000i.jpg, name_000i.jpg or name/i.jpg,
    or the folder name/i, a video whose frames count together. Other formats than JPEG will do.

        name i j               the same person
        name i other j         different people
        first second 0|1       images or folders, and whether they are of one person
        split, first, second, 0|1

    A first line of one or two numbers says how many lines of each kind follow (in each fold: "10 300"). Folds are ten,
    or what that line says, of equal size, in the order of the list.

    Raises UserError for a line that is none of these, an image that is missing, and pairs that cannot be verified.
    """
    if path.endswith(".bin"):
        pairs = Pairs.from_bin(path)
        templates = Templates.means(pairs.images, np.arange(len(pairs.rows)))
        return _checked(TemplatePairs(templates, pairs.left, pairs.right, pairs.same))
    try:
        lines = [line.replace(",", " ").split() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list of pairs {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    folder = os.path.dirname(path) if folder is None else folder
    folds, expected, start = _heading(lines)
    numbered = [(number, fields) for number, fields in enumerate(lines[start:], start + 1) if fields]
    if expected not in (None, len(numbered)):
        raise UserError(f"{path} announces {expected} pairs and holds {len(numbered)}: get or write the list again")

    numbers, sides, same = {}, [], []
    for number, fields in numbered:
        pair = _pair(fields)
        if pair is None:
            raise UserError(f"line {number} of {path} is no pair: {' '.join(fields)[:80]!r}. Expected is `name i j`")
        sides += [numbers.setdefault(image, len(numbers)) for image in pair[:2]]
        same.append(pair[2])
    files = [_files(Path(folder), image, path) for image in numbers]
    group = np.repeat(np.arange(len(files)), [len(each) for each in files])
    images = ImageFiles([file for each in files for file in each], path)
    left, right = np.array(sides, dtype=np.int64).reshape(-1, 2).T
    return _checked(TemplatePairs(Templates.means(images, group), left, right, np.array(same, bool), folds))


def _heading(lines: list[list[str]]) -> tuple[int, int | None, int]:
    """Folds, the number of pairs where it is announced, and the line where pairs begin."""
    first = lines[0] if lines else []
    if 1 <= len(first) <= 2 and all(field.isdecimal() for field in first):
        numbers = [int(field) for field in first]
        return (numbers[0] if len(numbers) == 2 else FOLDS), 2 * int(np.prod(numbers)), 1
    return FOLDS, None, int(bool(first) and first[0].lower().startswith(("#", "split")))


def _pair(fields: list[str]) -> tuple[tuple, tuple, bool] | None:
    """Two images, as (name, number) or (path,), and whether they are of the same person."""
    match fields:
        case [name, i, j] if i.isdecimal() and j.isdecimal():
            return (name, int(i)), (name, int(j)), True
        case [name, i, other, j] if i.isdecimal() and j.isdecimal():
            return (name, int(i)), (other, int(j)), False
        case [first, second, "0" | "1" as same] | [_, first, second, "0" | "1" as same]:
            return (first,), (second,), same == "1"
    return None


def _files(folder: Path, image: tuple, path: str) -> list[str]:
    """The file of an image, or the files of a video's frames."""
    match image:
        case (name, number):
            places = [f"{name}/{name}_{number:04d}", f"{name}_{number:04d}", f"{name}/{number}"]
        case _:
            places = image
    for place in places:
        for candidate in (str(folder / place) + suffix for suffix in ("", *SUFFIXES)):
            if os.path.isfile(candidate):
                return [candidate]
        if os.path.isdir(folder / place) and (frames := images_below(folder / place)):
            return frames
    raise UserError(
        f"{path} names {' '.join(map(str, image))}, but {folder} has no {places[0]}.jpg, nor another image or folder "
        "of that name: give the folder of the images by --images"
    )


def _checked(pairs: TemplatePairs) -> TemplatePairs:
    same, folds, name = pairs.same, pairs.folds, pairs.templates.images.name
    if not 2 <= folds <= len(same):
        raise UserError(f"{name} holds {len(same)} pairs, from which {folds} folds cannot be made")
    if same.all() or not same.any():
        raise UserError(f"{name} needs pairs of both kinds, but all of its pairs are of one kind")
    return pairs
