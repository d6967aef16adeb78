"""What a dataset holds: identities, images, the long tail, broken and repeated images."""

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from matplotlib.figure import Figure

from ffc_ds.data.bounds import MAX_MEGAPIXELS, check_max_megapixels
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.importers.image_check import Check, damage
from ffc_ds.data.importers.plan import Broken
from ffc_ds.data.importers.processes import process_pool, results
from ffc_ds.data.opening import load_faces
from ffc_ds.errors import UserError
from ffc_ds.evaluation.figures import DPI
from ffc_ds.progress import progress

BAR = 40  # characters
FIGURE = "images_per_identity.png"
PART = 8192  # images of one task
BATCH = 256  # images in memory at once


class Inspection(NamedTuple):
    """What was found."""

    images_per_identity: np.ndarray
    """int64 [identities]."""
    broken: list[Broken]
    repeated: int
    """Images whose bytes another image before them has."""
    shared: int
    """Those of them that another identity has."""

    @property
    def images(self) -> int:
        return int(self.images_per_identity.sum())

    @property
    def identities(self) -> int:
        return len(self.images_per_identity)


def inspect(
    name: str,
    split: str = "train",
    check: Check = "header",
    workers: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
    data_config: str | None = None,
    figure: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """Print what a dataset holds, and draw how many identities have how many images.

    Args:
        name: anything that training takes: a folder of parquet files or of images, a name on the hub, generated:...
        split: which of its splits.
        check: how an image is tested: by its header and its end, or by decoding it.
        workers: processes; by default one for each core.
        image_column: holds images or their encoded bytes.
        label_column: holds the identities.
        data_config: which of its configurations, where there are several.
        figure: picture to write; by default images_per_identity.png in the folder, if it is one of parquet files, or
            here.
        max_megapixels: an image whose header announces more is broken; at most 178.
    """
    check_max_megapixels(max_megapixels, "--max_megapixels")
    parquet = any(Path(name).glob("*.parquet"))
    path = Path(figure or (Path(name, FIGURE) if parquet else FIGURE))
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UserError(f"the figure {path} must end in one of .{', .'.join(kinds)}: choose another --figure")
    found = examine(name, split, check, workers, image_column, label_column, max_megapixels, data_config)
    print(describe(found), flush=True)
    try:
        long_tail_figure(found.images_per_identity, path)
    except OSError as error:
        raise UserError(f"the figure {path} cannot be written ({error.strerror}): choose another --figure") from error
    print(f"{'figure':<14}{path}")


def examine(
    name: str,
    split: str,
    check: Check,
    workers: int | None,
    image_column: str = "image",
    label_column: str = "label",
    max_megapixels: float = MAX_MEGAPIXELS,
    data_config: str | None = None,
) -> Inspection:
    """Look at every image. Takes about 50 bytes of memory an image. Raises UserError if it cannot be opened."""
    faces = load_faces(name, split, image_column, label_column, data_config)
    index, hashes, broken = IdentityIndex.build(faces.labels), np.empty(len(faces), np.uint64), {}
    labels = np.empty(len(faces), np.int64)
    labels[index.images] = np.repeat(np.arange(index.identities), index.counts)
    opened = name, split, image_column, label_column, str(datasets.config.HF_DATASETS_CACHE), data_config
    look = partial(examine_rows, opened, check, max_megapixels)
    with process_pool(workers) as pool, progress(desc="inspect", unit="images", total=len(faces)) as bar:
        futures = [pool.submit(look, start, min(start + PART, len(faces))) for start in range(0, len(faces), PART)]
        for start, found, broken[start] in results(futures):
            hashes[start : start + len(found)] = found
            bar.update(len(found))
    order = np.lexsort((labels, hashes))
    same = hashes[order][1:] == hashes[order][:-1]
    shared = same & (labels[order][1:] != labels[order][:-1])
    every = [one for start in sorted(broken) for one in broken[start]]
    return Inspection(index.counts, every, int(same.sum()), int(shared.sum()))


def examine_rows(
    opened: tuple, check: Check, max_megapixels: float, start: int, stop: int
) -> tuple[int, np.ndarray, list[Broken]]:
    """`start`, hashes of the bytes (uint64 [stop - start]) and broken images of these rows. One without bytes has a
    hash of its own, and so equals none."""
    faces = opened_faces(*opened)
    hashes, broken = [], []
    for first in range(start, stop, BATCH):
        rows = np.arange(first, min(first + BATCH, stop))
        for row, image in zip(rows.tolist(), faces.encoded(rows), strict=True):
            if (reason := damage(image, check, max_megapixels)) is not None:
                broken.append(Broken(faces.where(row), reason))
            if isinstance(image, bytes):
                found = hashlib.blake2b(image, digest_size=8)
            else:
                found = hashlib.blake2b(str(row).encode(), digest_size=8, person=b"row")
            hashes.append(found.digest())
    return start, np.frombuffer(b"".join(hashes), np.uint64), broken


@lru_cache(1)
def opened_faces(
    name: str, split: str, image_column: str, label_column: str, cache: str, config: str | None = None
) -> Faces:
    """The dataset, opened once in each worker, from the copy that its parent made."""
    datasets.config.HF_DATASETS_CACHE = cache
    return load_faces(name, split, image_column, label_column, config)


def long_tail(images_per_identity: np.ndarray) -> list[tuple[int, int, int]]:
    """(smallest, largest number of images, identities that have so many), by powers of two, up to the last in use."""
    # frexp is exact where a logarithm may miss a power of two.
    identities = np.bincount(np.frexp(images_per_identity)[1] - 1)
    return [(2**power, 2 ** (power + 1) - 1, int(count)) for power, count in enumerate(identities)]


def describe(found: Inspection) -> str:
    """The report."""
    counts = found.images_per_identity
    spread = f"mean {counts.mean():.1f}, median {np.median(counts):g}, most {counts.max():,}"
    rows = [
        ("images", f"{found.images:,}"),
        ("identities", f"{found.identities:,}"),
        ("per identity", f"{spread} images"),
        *_histogram(counts),
        ("broken", f"{len(found.broken):,}"),
        *(("", f"{key}: {reason}") for key, reason in found.broken),
        (
            "repeated",
            f"{found.repeated:,} images have the bytes of another, {found.shared:,} of them under another identity",
        ),
    ]
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _histogram(counts: np.ndarray) -> list[tuple[str, str]]:
    bins = long_tail(counts)
    most = max(identities for *_, identities in bins)
    return [(f"  {span(low, high)}", f"{n:>12,}  {'#' * -(-BAR * n // most)}") for low, high, n in bins]


def span(low: int, high: int) -> str:
    """A bin's name."""
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def long_tail_figure(images_per_identity: np.ndarray, path: Path) -> None:
    """Draw how many identities have how many images, both axes logarithmic."""
    bins = long_tail(images_per_identity)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(bins)), [n for *_, n in bins], width=0.9)
    axes.set_xticks(range(len(bins)), [span(low, high) for low, high, _ in bins])
    axes.set(yscale="log", xlabel="images of an identity", ylabel="identities")
    axes.set_title(f"{images_per_identity.sum():,} images of {len(images_per_identity):,} identities")
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)
