"""Whose images they are: ROOT/PERSON/**/IMAGE, or ROOT/SPLIT/PERSON/**/IMAGE."""

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ffc_ds.data.image_folder.walk import LeftOut, walk
from ffc_ds.data.importers.plan import printable
from ffc_ds.errors import UserError

SPLITS = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

People = dict[str, list[str]]
"""The images of each person, as paths relative to the root; both in sorted order."""


class ImageFolder(NamedTuple):
    """Who is in a folder of images."""

    root: str
    """Absolute path."""
    splits: dict[str, People]
    """"train" alone where the folder has no splits."""
    left_out: LeftOut
    doubts: list[str]
    """What may be meant otherwise than it is taken."""

    def __str__(self) -> str:
        several = len(self.splits) > 1
        counts = [
            f"{len(people):,} people, {count_images(people):,} images" + f" in split {split}" * several
            for split, people in self.splits.items()
        ]
        remarks = [str(self.left_out)] * bool(self.left_out) + self.doubts
        return "; ".join([f"{printable(self.root)}: {counts[0]}", *counts[1:], *remarks])


def read_image_folder(root: str | os.PathLike) -> ImageFolder:
    """Find the people in a folder: the first folder below it is the person, whatever it is called.

    Splits come before people only if each folder with images is called as a split is and has people's folders in it.
    Raises UserError where there is nobody, and as `walk` does.
    """
    found = walk(root)
    name, left_out, doubts = printable(found.root), found.left_out, []
    tops = by_folder(found.images, 0)
    beside = tops.pop("", [])
    splits, level = _as_splits(tops), 1
    if splits is None:
        splits, level, doubts = {"train": tops}, 0, _taken_for_people(found.root, tops)
    for path in [*beside, *(path for people in splits.values() for path in people.pop("", []))]:
        left_out["in no person's folder"].append(path)
    homes = [{"/".join(paths[0].split("/")[: level + 1]) for paths in people.values()} for people in splits.values()]
    known = set(tops).union(*homes)
    for folder in found.folders:
        if folder.count("/") <= level and folder not in known:
            left_out["a folder without an image"].append(f"{folder}/")
    if not known:
        raise UserError(
            f"{name} has no folder with images, and expected is one for each person, as {name}/PERSON/IMAGE; {left_out}"
        )
    for home in (min(one) for one in homes if len(one) == 1):
        if sum(folder.startswith(f"{home}/") for folder in found.folders) > 1:
            doubts.append(f"all is one person: if the people are the folders in it, give {name}/{printable(home)}")
    return ImageFolder(found.root, splits, left_out, doubts)


def by_folder(paths: Iterable[str], level: int) -> People:
    """Paths by the name of their folder at that level, those that lie above it by the empty name."""
    folders = defaultdict(list)
    for path in paths:
        parts = path.split("/", level + 1)
        folders[parts[level] if len(parts) > level + 1 else ""].append(path)
    return dict(folders)


def count_images(people: People) -> int:
    return sum(map(len, people.values()))


def _as_splits(tops: People) -> dict[str, People] | None:
    inside = {name: by_folder(paths, 1) for name, paths in tops.items() if name.lower() in SPLITS}
    if len(inside) < len(tops) or not all(set(people) - {""} for people in inside.values()):
        return None
    names = [SPLITS[name.lower()] for name in inside]
    return dict(zip(names if len(set(names)) == len(names) else inside, inside.values(), strict=True)) or None


def _taken_for_people(root: str, tops: People) -> list[str]:
    """What to say about people who are called as splits are, if any. Raises UserError if a table has their labels."""
    called = [name for name in tops if name.lower() in SPLITS]
    if len(called) < len(tops):
        called = [name for name in called if any(path.count("/") > 1 for path in tops[name])]
    elif called and (tables := [path for name in (*called, "") for path in _tables(root, name)]):
        raise UserError(
            f"the labels of {printable(root)} are in {', '.join(tables)}, and only folders tell who it is: make one "
            f"for each person, as {called[0]}/PERSON/IMAGE, or write parquet files with a column of labels"
        )
    why = "taken for people, since splits are only where all folders are called so and have people's folders in them"
    return [f"{', '.join(called)}: {why}"] if called else []


def _tables(root: str, folder: str) -> list[str]:
    paths = [os.path.join(folder, table) for table in TABLES]
    return [path for path in paths if os.path.isfile(os.path.join(root, path))]
