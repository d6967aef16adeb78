"""Celebrities in Frontal-Profile (Sengupta et al., WACV 2016), as its authors give it out."""

import os
from collections.abc import Iterator
from pathlib import Path

from ffc_ds.errors import UserError
from ffc_ds.evaluation.list_forms import Image, Listed

LISTS = {"F": "Pair_list_F.txt", "P": "Pair_list_P.txt"}
PARTS = {"same.txt": True, "diff.txt": False}


def read_cfp(folder: str) -> tuple[Listed, str]:
    """The pairs of Protocol/Split/FF (frontal) or Protocol/Split/FP (frontal and profile), and the folder of images.

        Protocol/Pair_list_F.txt, _P.txt       number, path as ../Data/Images/001/frontal/01.jpg
        Protocol/Split/FP/01 ... 10/same.txt   numbers of a frontal image and of a profile, with a comma; also diff.txt

    Raises UserError for anything else.
    """
    split = Path(os.path.abspath(folder))
    protocol, kinds = split.parent.parent, split.name.upper()
    folds = sorted(path.parent for path in split.glob("*/same.txt"))
    if kinds not in ("FF", "FP") or not folds:
        raise UserError(
            f"{folder} is a folder: give a list of pairs or a .bin in it, or of CFP the folder Protocol/Split/FP or FF"
        )
    first, second = (_images(protocol / LISTS[kind]) for kind in kinds)
    listed = Listed(folds=[])
    for number, fold in enumerate(folds):
        for part, same in PARTS.items():
            for line, a, b in _rows(fold / part, ","):
                if a not in first or b not in second:
                    raise UserError(f"line {line} of {fold / part} names an image that {protocol}/Pair_list_*.txt lack")
                listed.first.append(first[a])
                listed.second.append(second[b])
                listed.same.append(same)
                listed.folds.append(number)
    return listed, str(protocol.parent / "Data" / "Images")


def _images(path: Path) -> dict[str, Image]:
    """Images by their number. Paths begin at the person, since aligned images lie elsewhere in the same order."""
    return {number: ("/".join(image.split("/")[-3:]),) for _, number, image in _rows(path, None)}


def _rows(path: Path, separator: str | None) -> Iterator[tuple[int, str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            fields = [field.strip() for field in line.split(separator)]
            if len(fields) != 2:
                raise UserError(f"line {number} of {path} holds {line.strip()[:80]!r}, not two fields")
            yield number, *fields
