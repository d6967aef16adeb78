"""What a folder of parquet files holds: identities, images, the long tail, broken and repeated images."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from tqdm import tqdm

from ffc_ds.data.bounds import MAX_MEGAPIXELS, check_max_megapixels
from ffc_ds.data.importers.image_check import Check, damage
from ffc_ds.data.importers.plan import Broken
from ffc_ds.data.importers.processes import process_pool, results
from ffc_ds.errors import UserError
from ffc_ds.evaluation.figures import DPI

BAR = 40  # characters
BATCH = 256  # images


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
    folder: str,
    split: str = "train",
    check: Check = "header",
    workers: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """Print what a folder of parquet files holds, and draw images_per_identity.png into it.

    Args:
        folder: holds SPLIT-*.parquet with the columns image and label.
        split: which of its splits.
        check: how an image is tested: by its header and its end, or by decoding it.
        workers: processes; by default one for each core.
        max_megapixels: an image whose header announces more is broken; at most 178.
    """
    check_max_megapixels(max_megapixels, "--max_megapixels")
    found = examine(folder, split, check, workers, max_megapixels)
    figure = Path(folder) / "images_per_identity.png"
    try:
        long_tail_figure(found.images_per_identity, figure)
    except OSError as error:
        raise UserError(
            f"the figure {figure} cannot be written ({error.strerror}): see to the folder's rights"
        ) from error
    print(describe(found), f"{'figure':<14}{figure}", sep="\n")


def examine(
    folder: str, split: str, check: Check, workers: int | None, max_megapixels: float = MAX_MEGAPIXELS
) -> Inspection:
    """Look at every image. Takes about 50 bytes of memory an image. Raises UserError if there is none."""
    files = sorted(Path(folder).glob(f"{split}-*.parquet"))
    if not files:
        raise UserError(f"there is no {split}-*.parquet in {folder}: give a folder that prepare_data.py wrote")
    with process_pool(workers) as pool, tqdm(total=len(files), unit="file") as bar:
        parts = []
        for part in results([pool.submit(examine_file, file, check, max_megapixels) for file in files]):
            parts.append(part)
            bar.update()
    labels, hashes = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if not len(labels):
        raise UserError(f"the {split}-*.parquet in {folder} hold no images")
    order = np.lexsort((labels, hashes))
    same = hashes[order][1:] == hashes[order][:-1]
    shared = same & (labels[order][1:] != labels[order][:-1])
    counts = np.unique(labels, return_counts=True)[1]
    broken = sorted((one for *_, part in parts for one in part), key=lambda one: one.key.partition(" row ")[0])
    return Inspection(counts, broken, int(same.sum()), int(shared.sum()))


def examine_file(file: Path, check: Check, max_megapixels: float) -> tuple[np.ndarray, np.ndarray, list[Broken]]:
    """Labels (int64 [n]), hashes of the bytes (uint64 [n]) and broken images of one parquet file."""
    labels, hashes, broken = [np.empty(0, np.int64)], [], []
    try:
        for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=["image.bytes", "label"]):
            labels.append(batch["label"].cast(pa.int64()).to_numpy())
            for image in batch["image"].field("bytes").to_pylist():
                image = image or b""
                reason = damage(image, check, max_megapixels)
                if reason is not None:
                    broken.append(Broken(f"{file.name} row {len(hashes)}", reason))
                hashes.append(hashlib.blake2b(image, digest_size=8).digest())
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read as images with integer labels ({error}): get it again") from error
    return np.concatenate(labels), np.frombuffer(b"".join(hashes), np.uint64), broken


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
