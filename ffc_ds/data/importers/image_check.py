"""Tell a whole image from a damaged one, fast."""

import struct
from typing import Literal

import simplejpeg

from ffc_ds.data.decoding import CorruptImage, decode

Check = Literal["header", "full"]
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
THUMBNAIL = 8  # pixels; a JPEG of which little is wanted is decoded faster, and read to its end all the same


def damage(image: bytes, check: Check) -> str | None:
    """Why an encoded image cannot be used, or None.

    "header" is content with a signature, dimensions and an end marker where JPEG and PNG have them, and decodes what
    has not; "full" decodes everything.
    """
    if check == "header" and (_whole_jpeg(image) or _whole_png(image)):
        return None
    if image.startswith(b"\xff\xd8"):
        complaint = _complaint(image, strict=True)
        # Unless it is strict, it guesses what is missing; a kind of JPEG that it does not know, it always refuses.
        if complaint is None or _complaint(image, strict=False) is None:
            return complaint
    try:
        decode(image, THUMBNAIL)
    except CorruptImage as error:
        return str(error)
    return None


def _complaint(jpeg: bytes, strict: bool) -> str | None:
    try:
        simplejpeg.decode_jpeg(jpeg, min_height=THUMBNAIL, min_width=THUMBNAIL, strict=strict)
    except ValueError as error:
        return f"not a whole JPEG ({error})"
    return None


def _whole_jpeg(image: bytes) -> bool:
    if not (image.startswith(b"\xff\xd8\xff") and image.endswith(b"\xff\xd9")):
        return False
    try:
        return min(simplejpeg.decode_jpeg_header(image)[:2]) > 0
    except ValueError:
        return False


def _whole_png(image: bytes) -> bool:
    if not (image.startswith(PNG_START) and image.endswith(PNG_END) and len(image) > len(PNG_START) + 8):
        return False
    return min(struct.unpack_from(">II", image, len(PNG_START))) > 0
