"""Image bytes to RGB pixels."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from PIL import Image

from ffc_ds.errors import UserError


class CorruptImage(UserError):
    """An image that cannot be decoded."""


def decode(encoded: bytes, size: int) -> np.ndarray:
    """Decode one image of any format Pillow reads (JPEG by simplejpeg, twice as fast, identical pixels).

    Grey, palette, CMYK and RGBA become RGB; an image of another size or shape is stretched to the square, bilinear with
    antialiasing.

    Returns:
        uint8 [size, size, 3]. Raises CorruptImage with the reason.
    """
    pixels = _decode_jpeg(encoded, size) if encoded[:2] == b"\xff\xd8" else None
    if pixels is None:
        pixels = _decode_any(encoded)
    if pixels.shape != (size, size, 3):
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    return pixels


def decode_many(
    encoded: Sequence[bytes],
    size: int,
    out: np.ndarray | None = None,
    where: Callable[[int], str] = lambda position: f"image {position}",
) -> np.ndarray:
    """Decode images of mixed formats into uint8 [n, size, size, 3] (into `out` when given).

    Raises CorruptImage, which calls the damaged image by `where` of its position.
    """
    if out is None:
        out = np.empty((len(encoded), size, size, 3), dtype=np.uint8)
    for position, one in enumerate(encoded):
        try:
            out[position] = decode(one, size)
        except CorruptImage as error:
            raise CorruptImage(f"{where(position)}: {error}") from None
    return out


def _decode_jpeg(encoded: bytes, size: int) -> np.ndarray | None:
    """None where simplejpeg refuses: Pillow knows more kinds of JPEG, and why a damaged one is damaged."""
    try:
        # A JPEG can be shrunk for free while it is decoded, to the smallest scale that still covers the target.
        return simplejpeg.decode_jpeg(encoded, min_height=size, min_width=size)
    except ValueError:
        return None


def _decode_any(encoded: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    # Hostile bytes make Pillow's readers raise almost anything.
    except Exception as error:
        raise CorruptImage(f"not a readable image of {len(encoded)} bytes ({error})") from error
