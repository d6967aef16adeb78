"""Tell a whole image from a damaged one, fast."""

import struct
from typing import Literal

import simplejpeg

from ffc_ds.data.bounds import MAX_MEGAPIXELS, CorruptImage, check_bytes, check_size
from ffc_ds.data.decoding import decode, jpeg_header
from ffc_ds.data.failing_disk import FailingDisk

Check = Literal["header", "full"]
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
THUMBNAIL = 8  # pixels; a JPEG of which little is wanted is decoded faster, and read to its end all the same


def damage(image: bytes | CorruptImage, check: Check, max_megapixels: float = MAX_MEGAPIXELS) -> str | None:
    """Why an encoded image, or one that could not be read, cannot be used, or None.

    "header" is content with a signature, an end marker, and dimensions, of no more than `max_megapixels`, where JPEG
    and PNG have them, and decodes what has not; "full" decodes everything. Raises FailingDisk as it is.
    """
    if isinstance(image, FailingDisk):
        raise image
    if isinstance(image, CorruptImage):
        return str(image)
    try:
        check_bytes(len(image))
        if check == "header" and (size := _size_of_whole_jpeg(image) or _size_of_whole_png(image)):
            check_size(*size, max_megapixels)
            return None
        if header := image.startswith(b"\xff\xd8") and jpeg_header(image):
            check_size(*header[:2], max_megapixels)
            complaint = _complaint(image, strict=True)
            # Unless it is strict, it guesses what is missing; a kind of JPEG that it does not know, it always refuses.
            if complaint is None or _complaint(image, strict=False) is None:
                return complaint
        decode(image, THUMBNAIL, max_megapixels=max_megapixels)
    except CorruptImage as error:
        return str(error)
    return None


def _complaint(jpeg: bytes, strict: bool) -> str | None:
    try:
        simplejpeg.decode_jpeg(jpeg, min_height=THUMBNAIL, min_width=THUMBNAIL, strict=strict)
    except ValueError as error:
        return f"not a whole JPEG ({error})"
    return None


def _size_of_whole_jpeg(image: bytes) -> tuple[int, int] | None:
    if not (image.startswith(b"\xff\xd8\xff") and image.endswith(b"\xff\xd9")):
        return None
    try:
        height, width = simplejpeg.decode_jpeg_header(image)[:2]
    except ValueError:
        return None
    return (width, height) if width and height else None


def _size_of_whole_png(image: bytes) -> tuple[int, int] | None:
    if not (image.startswith(PNG_START) and image.endswith(PNG_END) and len(image) > len(PNG_START) + 8):
        return None
    width, height = struct.unpack_from(">II", image, len(PNG_START))
    return (width, height) if width and height else None
