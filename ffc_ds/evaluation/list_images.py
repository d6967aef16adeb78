"""The images that a list of pairs names, found in a folder."""

import os
import re
from collections import defaultdict
from functools import cache

from ffc_ds.errors import UserError
from ffc_ds.evaluation.image_files import images_below
from ffc_ds.evaluation.list_forms import Image

# Of several files of one name the first of these is taken. A file with another ending is somebody's landmarks or boxes.
IMAGES = ".jpg .jpeg .jpe .jfif .png .bmp .dib .webp .tif .tiff .gif .jp2 .avif .ppm .pgm .pnm"
ENDINGS = ("", *IMAGES.split())
Entries = dict[str | tuple[str, int], list[str]]
"""Names of files and folders by their names without ending, and by what comes before the number at its end."""


class ListImages:
    """Finds images in a folder. What is in it is looked at once."""

    def __init__(self, folder: str):
        self.folder = folder
        self._entries = cache(_entries)

    def find(self, image: Image) -> list[str]:
        """The path of an image, or the paths of a video's frames; none if it is not there.

        Image i of a person is name/name_i or name/i, or name_i in the folder itself, with any zeros before i and any
        ending. A path may lack its ending or have another one, as of the pictures that were aligned.
        """
        match image:
            case (name, i):
                person = os.path.basename(name)
                places = ((name, (f"{person}_", i)), (name, ("", i)), (os.path.dirname(name), (f"{person}_", i)))
                exact = f"{person}_{i:04d}"
            case (path,):
                home, exact = os.path.split(path.replace("\\", "/").rstrip("/"))
                places = ((home, exact), (home, _parts(exact)[0]))
        for home, key in places:
            folder = os.path.join(self.folder, home)
            if names := self._entries(folder).get(key):
                found = os.path.join(folder, min(names, key=lambda name: _preference(name, exact)))
                return images_below(found) if os.path.isdir(found) else [found] * os.path.isfile(found)
        return []


def _entries(folder: str) -> Entries:
    entries = defaultdict(list)
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise UserError(f"folder of images {folder} cannot be read: {error.strerror}") from None
    for name in names:
        stem, _ = _parts(name)
        for key in {name, stem}:
            entries[key].append(name)
        if numbered := re.fullmatch(r"(.*?)([0-9]+)", stem):
            entries[numbered[1], int(numbered[2])].append(name)
    return entries


def _parts(name: str) -> tuple[str, str]:
    """A name without its ending, and that; all of a name whose ending is no image's."""
    stem, ending = os.path.splitext(name)
    return (stem, ending.lower()) if ending.lower() in ENDINGS else (name, "")


def _preference(name: str, exact: str) -> tuple:
    stem, ending = _parts(name)
    return name != exact, stem != exact, ENDINGS.index(ending), name
