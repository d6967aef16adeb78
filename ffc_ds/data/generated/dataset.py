"""Generated identities: an unlimited, deterministic face data set in the form of any other Hugging Face data set."""

import hashlib
import json
import re
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ffc_ds.data.copies import open_copy
from ffc_ds.data.generated.parameters import uniforms
from ffc_ds.data.generated.parts import Part, bounds, write_missing
from ffc_ds.data.generated.renderer import RENDERER_VERSION
from ffc_ds.data.randomness import mix
from ffc_ds.errors import UserError

FIRST_IDENTITY = {"train": 0, "test": 2**62}  # of the identity numbers: no person is in both splits
LARGEST = 64  # images of one identity
FEWEST_IN_TEST = 4
MOST_IN_TEST = 10_000  # people: more would cost as much as those to train on, for a few thousand pairs
TAIL = -1  # the stream of random numbers that decides how many images there are

# Zipf-Mandelbrot, P(n) ~ 1 / (n + 3)^2: about 38 % of the people have one or two images.
_numbers = np.arange(1, LARGEST + 1)
_weights = 1 / (_numbers + 3.0) ** 2
_cumulative = np.cumsum(_weights) / _weights.sum()
MEAN = float(_numbers @ _weights / _weights.sum())  # 8


def parse(name: str) -> tuple[int, int, float | None]:
    """Splits "generated[:identities[:size[:mean]]]" into (identities, size in pixels, images a person on average); they
    default to 1000, 64 and None, which is the tail as it is.

    Raises UserError if the name has another form, an identity count below 2, a size outside 16..512 or a mean below 1.
    """
    form = r"generated(?::([0-9]{1,10})(?::([0-9]{1,4})(?::([0-9]{1,3}(?:\.[0-9]{1,3})?))?)?)?"
    match = re.fullmatch(form, name)
    identities, size = (int(match[1] or 1000), int(match[2] or 64)) if match else (0, 0)
    mean = float(match[3]) if match and match[3] else None
    if identities < 2 or not 16 <= size <= 512 or (mean is not None and mean < 1):
        raise UserError(
            f"data set name {name!r}: expected generated[:IDENTITIES[:SIZE[:MEAN]]] with at least 2 identities, a size "
            "of 16 to 512 pixels and 1 to 999 images a person on average, for example generated:2000:64"
        )
    return identities, size, mean


def number_of_images(identities: np.ndarray, seed: int = 0, mean: float | None = None) -> np.ndarray:
    """The long tail: how many images each identity has, int64 [n] -> int64 [n] in 1..LARGEST (Zipf-Mandelbrot).

    mean: the expected number; what each has beyond its first image is in proportion to what it has without `mean`, and
    rounded at random.
    """
    share, rounding = uniforms(mix(seed, identities, TAIL), 2).T
    number = np.minimum(np.searchsorted(_cumulative, share, side="right"), LARGEST - 1) + 1
    if mean is None:
        return number
    return 1 + np.floor((number - 1) * ((mean - 1) / (MEAN - 1)) + rounding).astype(np.int64)


def build(identities: int, split: str, size: int = 64, seed: int = 0, mean: float | None = None) -> datasets.Dataset:
    """The generated data set of a split ("train" or "test"), rendered at the first call and memory-mapped from then on.

    Columns: image (datasets.Image, JPEG of size x size), label (int64, 0..identities - 1, in ascending order), name
    (string). Test people are none of the train people, MOST_IN_TEST at most, and have at least FEWEST_IN_TEST images
    each. The files lie in the datasets cache under a key of all arguments; processes may build at once, and what one
    leaves behind the next one goes on with. Raises UserError if `split` is neither, or the files cannot be written, or
    are damaged.
    """
    if split not in FIRST_IDENTITY:
        raise UserError(f"split {split!r} of the generated data set: it has the splits train and test")
    if split == "test":
        identities = min(identities, MOST_IN_TEST)
    arguments = {"identities": identities, "split": split, "size": size, "seed": seed, "renderer": RENDERER_VERSION}
    digest = hashlib.sha256(json.dumps(arguments | {"mean": mean}, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "generated" / f"{split}-{identities}x{size}-{digest}"
    counts = partial(_counts, split=split, seed=seed, mean=mean)
    parts = [
        Part(folder / f"{first:010d}.arrow", split, first, end, FIRST_IDENTITY[split], counts, size, seed)
        for first, end in bounds(identities)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_missing(parts, f"rendering {identities:,} generated people ({split})")
    except OSError as error:
        raise UserError(
            f"generated faces cannot be written to {folder} ({error.strerror}): there must be room"
        ) from error
    name = f"generated faces ({split})"
    whole = datasets.concatenate_datasets([open_copy(part.place, name, part.rows) for part in parts])
    return datasets.Dataset(whole.data, whole.info, whole.split, fingerprint=digest)


def _counts(identities: np.ndarray, split: str, seed: int, mean: float | None) -> np.ndarray:
    counts = number_of_images(identities, seed, mean)
    return np.maximum(counts, FEWEST_IN_TEST) if split == "test" else counts
