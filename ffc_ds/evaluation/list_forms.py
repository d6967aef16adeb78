"""Lists of pairs in text files, in every form that the field has them in."""

import csv
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ffc_ds.data.file_kind import file_kind
from ffc_ds.errors import UserError
from ffc_ds.evaluation.flags import read_flag
from ffc_ds.evaluation.verification import FOLDS

Image = tuple[str, int] | tuple[str]
"""An image, or a folder of frames: number i of a person, or a path."""
Row = tuple[int, str]
"""A line with its number."""

FORMS = """
    name i j                   images i and j of a person
    name i other j             images of two people
    first second FLAG          images, or folders of frames; 1, true or same for one person; 0, -1, false or different
    FLAG first second          likewise
    split first second FLAG    likewise; split is the number of the fold, and a number of the pair may follow it
    image FLAG                 two lines a pair, both with its FLAG, 0 for two people
with tabs, commas, semicolons or blanks between, below a line of one or two counts, a line that names the columns, or
nothing"""
COLUMN_NAMES = (
    "name names image images img imgs imagenum path paths file files filename filenames first second left right probe "
    "gallery number num no index split fold pair pairs is the a b id same issame person identity subject label labels "
    "flag target match matched genuine unnamed"
)


@dataclass
class Listed:
    """Pairs of images with their truth, and the fold of each, or how many to make."""

    first: list[Image] = field(default_factory=list)
    second: list[Image] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    folds: int | list[int] = FOLDS


def read_list(path: str) -> Listed:
    """The pairs of a list that has one of the FORMS throughout.

    A first line "10 300" or "500" says how many pairs of each kind follow (in each of 10 folds). Lines that are empty
    or begin with # are skipped; a byte order mark and any ends of lines will do. Raises UserError for a file that is
    something else, a line that is in another form, and pairs that are not as many as announced.
    """
    rows = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip() and line.strip()[0] != "#"]
    listed, wrong = _parsed(rows[1:] if _names_columns(rows) else rows)
    if wrong is not None:
        listed, wrong = _parsed(rows)
    if wrong is None:
        return listed
    counts = _counts(rows[0][1])
    if counts or _is_heading(rows[0][1]):
        rows = rows[1:]
        listed, wrong = _parsed(rows)
    if wrong is not None:
        raise UserError(_complaint(path, rows, *wrong))
    if counts:
        *folds, pairs = counts
        announced = 2 * pairs * (folds[0] if folds else 1)
        if len(listed.same) not in (announced, announced // 2):
            raise UserError(
                f"{path} announces {announced:,} pairs and holds {len(listed.same):,}: get or write the list again"
            )
        listed.folds = folds[0] if folds else listed.folds
    return listed


def _lines(path: str) -> list[str]:
    try:
        if (kind := file_kind(Path(path))) not in ("a text", None):
            raise UserError(f"{path} is no list of pairs but {kind}: get or write the list again")
        data = Path(path).read_bytes()
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"list of pairs {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"list of pairs {path} cannot be read: it is no text in UTF-8 ({error})") from None
    return re.split(r"\r\n|\r|\n", text)


def _parsed(rows: list[Row]) -> tuple[Listed, Row | None]:
    """The pairs as that form reads them which gets farthest, and the first line that it cannot read, if any."""
    best, farthest = (Listed(), None), -1
    for fields in SEPARATED:
        for lines, form in READ:
            listed, splits = Listed(), []
            for start in range(0, len(rows), lines):
                part = rows[start : start + lines]
                pair = form(*(fields(line) for _, line in part)) if len(part) == lines else None
                if pair is None:
                    break
                first, second, same, *split = pair
                listed.first.append(first)
                listed.second.append(second)
                listed.same.append(same)
                splits += split
            else:
                listed.folds = splits or FOLDS
                return listed, None
            if start > farthest:
                best, farthest = (listed, part[-1]), start
    return best


def _split_at(separator: str) -> Callable[[str], list[str]]:
    def fields(line: str) -> list[str]:
        found = next(csv.reader([line], delimiter=separator)) if '"' in line else line.split(separator)
        return [each.strip() for each in found if each.strip()]

    return fields


def _words(line: str) -> list[str]:
    return re.findall(r"[^\s,;]+", line)


SEPARATED = (*map(_split_at, "\t,;"), str.split, _words)


def _flag_last(fields: list[str]) -> tuple | None:
    if len(fields) == 3 and (same := read_flag(fields[2])) is not None:
        return (fields[0],), (fields[1],), same
    return None


def _flag_first(fields: list[str]) -> tuple | None:
    return _flag_last([*fields[1:], *fields[:1]])


def _with_split(fields: list[str]) -> tuple | None:
    numbers = fields[:-3]
    if len(numbers) in (1, 2) and all(map(str.isdecimal, numbers)) and (pair := _flag_last(fields[-3:])):
        return *pair, int(numbers[0])
    return None


def _two_lines(first: list[str], second: list[str]) -> tuple | None:
    """CALFW's flags of one person are the numbers of folds, 1 to 10, those of two people 0."""
    if len(first) == len(second) == 2 and first[1] == second[1]:
        same = int(first[1]) > 0 if first[1].isdecimal() else read_flag(first[1])
        return None if same is None else ((first[0],), (second[0],), same)
    return None


def _numbered(fields: list[str]) -> tuple | None:
    match fields:
        case [name, i, j] if i.isdecimal() and j.isdecimal():
            return (name, int(i)), (name, int(j)), True
        case [name, i, other, j] if i.isdecimal() and j.isdecimal():
            return (name, int(i)), (other, int(j)), name == other
    return None


READ = ((1, _flag_last), (1, _flag_first), (1, _with_split), (2, _two_lines), (1, _numbered))


def _counts(line: str) -> list[int]:
    fields = _words(line)
    return [int(each) for each in fields] if len(fields) <= 2 and all(map(str.isdecimal, fields)) else []


def _is_heading(line: str) -> bool:
    words = re.findall(r"[^\W\d_]+", line.lower())
    return bool(words) and set(COLUMN_NAMES.split()).issuperset(words)


def _names_columns(rows: list[Row]) -> bool:
    """Whether the first line is a heading that reads like a pair too, as image1,image2,same does."""
    words = set(_words(rows[0][1])) if rows and _is_heading(rows[0][1]) else set()
    if not words or any(re.search(r"[/\\]|^\d+$", word) for word in words):
        return False
    return words.isdisjoint(itertools.chain.from_iterable(_words(line) for _, line in rows[1:]))


def _complaint(path: str, rows: list[Row], number: int, line: str) -> str:
    rows_of_people = [fields for fields in (_words(line) for _, line in rows) if len(fields) == 2]
    if len(rows_of_people) == len(rows) and all(n.isdecimal() and "." not in name for name, n in rows_of_people):
        return f"{path} lists people and how many images each has: give the list of pairs, as LFW's pairs.txt"
    line = line.strip()[:80]
    return f"line {number} of {path} is no pair: {line!r}. A list has one of these forms throughout:{FORMS}"
