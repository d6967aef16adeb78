"""A folder of images for each identity."""

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain

import numpy as np

from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.decoding import read_image_file
from ffc_ds.data.failing_disk import is_failing
from ffc_ds.data.image_folder.kinds import is_damage
from ffc_ds.data.image_folder.people import read_image_folder
from ffc_ds.data.image_folder.table import content_of
from ffc_ds.data.importers.plan import Broken, Plan, Record, check_count, printable
from ffc_ds.errors import UserError
from ffc_ds.progress import say_once


def plan_imagefolder(source: str, shard_images: int = 20_000) -> Plan:
    """Plan the import of images SOURCE/IDENTITY/**/IMAGE; identities are numbered by their names in sorted order.

    Args:
        source: folder with a folder for each identity.
        shard_images: images of one parquet file.
    """
    check_count(shard_images)
    folder = read_image_folder(source)
    if len(folder.splits) > 1:
        raise UserError(
            f"{source} has the splits {', '.join(folder.splits)}: give the folder of each by itself, and another output"
        )
    damaged = [reason for reason in folder.left_out if is_damage(reason)]
    broken = [Broken(printable(path), reason) for reason in damaged for path in folder.left_out.pop(reason)]
    say_once(str(folder))
    (people,) = folder.splits.values()
    names, paths = list(people), list(chain.from_iterable(people.values()))
    labels = np.repeat(np.arange(len(names)), [len(each) for each in people.values()])
    jobs = [partial(iter, broken)] * bool(broken)
    for start in range(0, len(paths), shard_images):
        part = slice(start, start + shard_images)
        first, last = labels[part][[0, -1]].tolist()
        jobs.append(partial(read_files, folder.root, paths[part], labels[part], first, names[first : last + 1]))
    about = {
        "imagefolder": os.path.realpath(folder.root),
        "identities": len(names),
        "images": len(paths),
        "content": content_of(folder.root, people),
        "images of a file": shard_images,
    }
    return Plan(about, jobs)


def read_files(
    root: str, paths: list[str], labels: np.ndarray, first: int, names: list[str]
) -> Iterator[Record | Broken]:
    """The images at these paths; `names` are those of the identities from number `first` on."""
    for path, label in zip(paths, labels.tolist(), strict=True):
        key = printable(path)
        try:
            yield Record(key, read_image_file(os.path.join(root, path)), label, printable(names[label - first]))
        except OSError as error:
            if is_failing(error):
                raise
            yield Broken(key, f"it cannot be read ({error.strerror})")
        except CorruptImage as error:
            yield Broken(key, str(error))
