"""Image bytes to RGB pixels: one decoder for training, evaluation, import and alignment."""

import io
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ffc_ds.data.bounds import MAX_MEGAPIXELS, CorruptImage, check_bytes, check_size, too_large_for_pillow
from ffc_ds.data.rgb import ORIENTATION, orientation, upright, upright_rgb

# Pillow reads more, but no faces come in it, and for EPS it starts a program.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "PCX", "SGI", "TGA"]
# Segments of a JPEG: the one that gives its size, of many kinds, EXIF or XMP, and the one before its pixels.
FRAME, APP1, SCAN = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}, 0xE1, 0xDA


def decode(
    encoded: bytes | CorruptImage, size: int, out: np.ndarray | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decode one image of any of `FORMATS` (JPEG by simplejpeg, twice as fast as Pillow, identical pixels).

    What its pixels are is told by `rgb.upright_rgb`; an image of another size or shape is stretched to the square,
    bilinear with antialiasing. One that could not even be read stands for itself, as the error that says so.

    Returns:
        uint8 [size, size, 3], `out` when given (contiguous). Raises CorruptImage with the reason; `out` is undefined
        then. An image whose header announces more than `max_megapixels` is refused before it is decoded.
    """
    if out is None:
        out = np.empty((size, size, 3), dtype=np.uint8)
    pixels = _pixels(encoded, size, out, max_megapixels)
    if pixels is out:
        return out
    if pixels.shape != out.shape:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    out[...] = pixels
    return out


def decode_whole(encoded: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """`decode` without resizing: uint8 [h, w, 3]."""
    return _pixels(encoded, 0, None, max_megapixels)


def refuse(position: int, error: CorruptImage) -> None:
    """What `decode_many` does about a damaged image when it is not told otherwise."""
    raise CorruptImage(f"image {position}: {error}") from None


def decode_many(
    encoded: Sequence[bytes | CorruptImage],
    size: int,
    out: Sequence[np.ndarray] | None = None,
    damaged: Callable[[int, CorruptImage], None] = refuse,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Sequence[np.ndarray]:
    """Decode images of mixed formats into uint8 [n, size, size, 3] (into the images of `out` when given).

    `damaged` is called with the position and the error of each that cannot be read or decoded: it raises, or fills
    `out[position]` itself.
    """
    if out is None:
        out = np.empty((len(encoded), size, size, 3), dtype=np.uint8)
    for position, (one, pixels) in enumerate(zip(encoded, out, strict=True)):
        try:
            decode(one, size, pixels, max_megapixels)
        except CorruptImage as error:
            damaged(position, error)
    return out


def read_image_file(path: str | os.PathLike) -> bytes:
    """Encoded bytes of a file. Raises OSError, and CorruptImage for more than MAX_BYTES, which it does not read."""
    check_bytes(os.path.getsize(path))
    return Path(path).read_bytes()


def jpeg_header(encoded: bytes) -> tuple[int, int, int] | None:
    """Width, height, and where EXIF or XMP starts (0: nowhere), of a JPEG of segments in a row; None for others."""
    at, tags, size = 2, 0, None
    try:
        while encoded[at] == 0xFF:
            marker = encoded[at + 1]
            if marker == SCAN:
                return size and (*size, tags)
            if marker in FRAME:
                size = struct.unpack_from(">HH", encoded, at + 5)[::-1]
            elif marker == APP1 and not tags:
                tags = at
            at += 2 + (encoded[at + 2] << 8 | encoded[at + 3])
    except (IndexError, struct.error):
        pass
    return None


def _pixels(encoded: bytes | CorruptImage, size: int, out: np.ndarray | None, max_megapixels: float) -> np.ndarray:
    """Pixels of the whole image, at least `size` in each direction if it has so many; in `out` where they fit."""
    if isinstance(encoded, CorruptImage):
        raise encoded
    check_bytes(len(encoded))
    pixels = None
    if encoded[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(encoded, size, out, max_megapixels)
    return _decode_any(encoded, max_megapixels) if pixels is None else pixels


def _decode_jpeg(encoded: bytes, size: int, out: np.ndarray | None, max_megapixels: float) -> np.ndarray | None:
    """None where simplejpeg refuses: Pillow knows more kinds of JPEG, and why a damaged one is damaged."""
    if (header := jpeg_header(encoded)) is None:
        return None
    width, height, tags = header
    check_size(width, height, max_megapixels)
    # Straight to its place, if it has that size: simplejpeg leaks some 4 KB when it finds a buffer too small.
    for buffer in (out, None) if out is not None and out.shape[:2] == (height, width) else (None,):
        try:
            # A JPEG can be shrunk for free while it is decoded, to the smallest scale that still covers the target.
            pixels = simplejpeg.decode_jpeg(encoded, min_height=size, min_width=size, buffer=buffer)
        except ValueError:
            continue
        if tags:
            return upright(pixels, _jpeg_orientation(encoded, tags)).copy()
        return out if buffer is not None and pixels.shape == out.shape else pixels
    return None


def _jpeg_orientation(encoded: bytes, tags: int) -> int:
    """From EXIF alone where it says so, a quarter of the time of opening the image; from whatever Pillow knows else."""
    with warnings.catch_warnings(action="ignore"):
        with suppress(Exception):  # as in _decode_any; and it may be XMP
            (length,) = struct.unpack_from(">H", encoded, tags + 2)
            exif = Image.Exif()
            exif.load(encoded[tags + 4 : tags + 2 + length])
            if ORIENTATION in exif:
                return exif[ORIENTATION]
        with suppress(Exception), Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
            return orientation(image)
    return 1


def _decode_any(encoded: bytes, max_megapixels: float) -> np.ndarray:
    try:
        # Pillow warns of large images, and of oddities that do no harm.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            check_size(*image.size, max_megapixels)
            return upright_rgb(image)
    except CorruptImage:
        raise
    except Image.DecompressionBombError:
        raise too_large_for_pillow(max_megapixels) from None
    except UnidentifiedImageError:  # its message has an address, different each time
        raise CorruptImage(f"not a readable image of {len(encoded)} bytes (unknown format)") from None
    # Hostile bytes make Pillow's readers raise almost anything.
    except Exception as error:
        raise CorruptImage(f"not a readable image of {len(encoded)} bytes ({error})") from error
