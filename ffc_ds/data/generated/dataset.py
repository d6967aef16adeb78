"""Generated identities: an unlimited, deterministic face data set in the form of any other Hugging Face data set."""

import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import simplejpeg
from datasets.arrow_writer import ArrowWriter

from ffc_ds.data.generated.parameters import uniforms
from ffc_ds.data.generated.renderer import RENDERER_VERSION, render
from ffc_ds.data.randomness import mix
from ffc_ds.errors import UserError
from ffc_ds.progress import progress

FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.Value("int64"), "name": datasets.Value("string")}
)
FIRST_IDENTITY = {"train": 0, "test": 2**62}  # of the identity numbers: no person is in both splits
LARGEST = 64  # images of one identity
FEWEST_IN_TEST = 4
TAIL = -1  # the stream of random numbers that decides how many images there are
JPEG_QUALITY = 92
CHUNK = 512  # images in memory at a time

# Zipf-Mandelbrot, P(n) ~ 1 / (n + 3)^2: about 38 % of the people have one or two images, the mean is 8.
_weights = 1 / (np.arange(1, LARGEST + 1) + 3.0) ** 2
_cumulative = np.cumsum(_weights) / _weights.sum()


def parse(name: str) -> tuple[int, int]:
    """Splits "generated[:identities[:size]]" into (identities, size in pixels); they default to 1000 and 64.

    Raises UserError if the name has another form, an identity count below 2 or a size outside 16..512.
    """
    match = re.fullmatch(r"generated(?::([0-9]{1,10})(?::([0-9]{1,4}))?)?", name)
    identities, size = (int(match[1] or 1000), int(match[2] or 64)) if match else (0, 0)
    if identities < 2 or not 16 <= size <= 512:
        raise UserError(
            f"data set name {name!r}: expected generated[:IDENTITIES[:SIZE]] with at least 2 identities and a size of "
            "16 to 512 pixels, for example generated:2000:64"
        )
    return identities, size


def number_of_images(identities: np.ndarray, seed: int = 0) -> np.ndarray:
    """The long tail: how many images each identity has, int64 [n] -> int64 [n] in 1..LARGEST (Zipf-Mandelbrot)."""
    share = uniforms(mix(seed, identities, TAIL), 1)[:, 0]
    return np.minimum(np.searchsorted(_cumulative, share, side="right"), LARGEST - 1) + 1


def build(identities: int, split: str, size: int = 64, seed: int = 0) -> datasets.Dataset:
    """The generated data set of a split ("train" or "test"), rendered at the first call and memory-mapped from then on.

    Columns: image (datasets.Image, JPEG of size x size), label (int64, 0..identities - 1, in ascending order), name
    (string). Test people are none of the train people and have at least FEWEST_IN_TEST images each. The file lies in
    the datasets cache under a key of all arguments; processes may build at once, the first to finish wins.
    Raises UserError if `split` is neither.
    """
    if split not in FIRST_IDENTITY:
        raise UserError(f"split {split!r} of the generated data set: it has the splits train and test")
    arguments = {"identities": identities, "split": split, "size": size, "seed": seed, "renderer": RENDERER_VERSION}
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]
    root = Path(datasets.config.HF_DATASETS_CACHE) / "generated"
    folder = root / f"{split}-{identities}x{size}-{digest}"
    if not folder.exists():
        aside = root / f".building-{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        try:
            _write(aside / "data.arrow", identities, split, size, seed)
            os.rename(aside, folder)  # fails if another process has put its own there, which is the same
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return datasets.Dataset.from_file(str(folder / "data.arrow"))


def _write(path: Path, identities: int, split: str, size: int, seed: int) -> None:
    first = FIRST_IDENTITY[split]
    counts = number_of_images(np.arange(first, first + identities), seed)
    if split == "test":
        counts = np.maximum(counts, FEWEST_IN_TEST)
    ends = np.cumsum(counts)
    with (
        ArrowWriter(path=str(path), features=FEATURES) as writer,
        progress(
            desc=f"rendering {identities} generated identities ({split})",
            unit="images",
            total=int(ends[-1]),
            shown=os.environ.get("RANK", "0") == "0",
        ) as bar,
    ):
        for start in range(0, int(ends[-1]), CHUNK):
            row = np.arange(start, min(start + CHUNK, int(ends[-1])))
            label = np.searchsorted(ends, row, side="right")
            pixels = render(first + label, row - (ends - counts)[label], size, seed)
            jpeg = [simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY) for image in pixels]
            image = pa.StructArray.from_arrays(
                [pa.array(jpeg, pa.binary()), pa.nulls(len(jpeg), pa.string())], ["bytes", "path"]
            )
            names = [f"{split}-{number:08d}" for number in label]
            writer.write_table(pa.table({"image": image, "label": label, "name": names}))
            bar.update(len(row))
        writer.finalize()
