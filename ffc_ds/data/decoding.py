"""Image bytes to RGB pixels."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ffc_ds.errors import UserError


class CorruptImage(UserError):
    """An image that cannot be decoded."""


def decode(encoded: bytes, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Decode one image of any format Pillow reads (JPEG by simplejpeg, twice as fast, identical pixels).

    Grey, palette, CMYK and RGBA become RGB; an image of another size or shape is stretched to the square, bilinear with
    antialiasing.

    Returns:
        uint8 [size, size, 3], `out` when given (contiguous). Raises CorruptImage with the reason; `out` is undefined
        then.
    """
    if out is None:
        out = np.empty((size, size, 3), dtype=np.uint8)
    pixels = _decode_jpeg(encoded, size, out) if encoded[:2] == b"\xff\xd8" else None
    if pixels is None:
        pixels = _decode_any(encoded)
    if pixels.shape != out.shape:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    if not np.may_share_memory(pixels, out):
        out[...] = pixels
    return out


def refuse(position: int, error: CorruptImage) -> None:
    """What `decode_many` does about a damaged image when it is not told otherwise."""
    raise CorruptImage(f"image {position}: {error}") from None


def decode_many(
    encoded: Sequence[bytes],
    size: int,
    out: Sequence[np.ndarray] | None = None,
    damaged: Callable[[int, CorruptImage], None] = refuse,
) -> Sequence[np.ndarray]:
    """Decode images of mixed formats into uint8 [n, size, size, 3] (into the images of `out` when given).

    `damaged` is called with the position and the error of each image that cannot be decoded: it raises, or fills
    `out[position]` itself.
    """
    if out is None:
        out = np.empty((len(encoded), size, size, 3), dtype=np.uint8)
    for position, (one, pixels) in enumerate(zip(encoded, out, strict=True)):
        try:
            decode(one, size, pixels)
        except CorruptImage as error:
            damaged(position, error)
    return out


def _decode_jpeg(encoded: bytes, size: int, out: np.ndarray) -> np.ndarray | None:
    """None where simplejpeg refuses: Pillow knows more kinds of JPEG, and why a damaged one is damaged."""
    for buffer in (out, None):  # straight to its place, if it is not too large for it
        try:
            # A JPEG can be shrunk for free while it is decoded, to the smallest scale that still covers the target.
            return simplejpeg.decode_jpeg(encoded, min_height=size, min_width=size, buffer=buffer)
        except ValueError:
            continue
    return None


def _decode_any(encoded: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its message has an address, different each time
        raise CorruptImage(f"not a readable image of {len(encoded)} bytes (unknown format)") from None
    # Hostile bytes make Pillow's readers raise almost anything.
    except Exception as error:
        raise CorruptImage(f"not a readable image of {len(encoded)} bytes ({error})") from error
