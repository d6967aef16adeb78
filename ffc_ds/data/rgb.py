"""A Pillow image as others show it: upright, RGB, 8 bits a channel."""

import numpy as np
from PIL import Image

ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF
WHITE_IS_ZERO = 0
MIRRORED, UPSIDE_DOWN, TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)  # orientations, after a transposition


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of an image of any mode, uint8 [h, w, 3].

    The orientation that its EXIF or XMP tells is applied. Transparent pixels lie on white, as in transformers. Of more
    than 8 bits the upper 8 are kept, as in OpenCV. Floating point is 0 to 1 or 0 to 255. Colour profiles are not looked
    at.

    Raises ValueError, with the reason, for grey levels of no known range, and whatever Pillow raises for damaged bytes.
    """
    image.load()  # turns a TIFF, and reads what a PNG tells after its pixels
    return upright(_deep_grey(image) if image.mode.startswith(("I", "F")) else _rgb(image), orientation(image))


def orientation(image: Image.Image) -> int:
    """How the pixels of an image lie, from 1 (upright) to 8, as EXIF numbers it."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    # Damaged EXIF makes Pillow raise almost anything, and harms no pixel.
    except Exception:
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of pixels [h, w, ...] as they are to be seen; what is no orientation changes nothing."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in MIRRORED:
        pixels = pixels[:, ::-1]
    if orientation in UPSIDE_DOWN:
        pixels = pixels[::-1]
    return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    if {"A", "a"} & {*image.getbands()} or image.info.get("transparency") is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Of 16 or 32 bits, which Pillow would clip: it takes anything for 0 to 255."""
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    lowest, highest = levels.min(), levels.max()
    if image.mode.startswith("I;16"):
        bits = tags.get(BITS, (16,))[0]  # 12 in the TIFFs of some cameras
        grey = levels >> (bits - 8)
    elif image.mode == "F" and lowest >= 0 and highest <= 1:
        grey = np.rint(255 * levels)
    elif image.mode == "I" and lowest >= 0 and (255 < highest <= 0xFFFF or image.format in ("PNG", "PPM")):
        grey = levels >> 8
    elif lowest >= 0 and highest <= 255:
        grey = np.rint(levels)
    else:
        raise ValueError(f"grey levels from {lowest:g} to {highest:g} are of no known range: save it with 8 or 16 bits")
    grey = grey.astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if (hidden := image.info.get("transparency")) is not None:
        grey[levels == hidden] = 255
    return np.repeat(grey[..., None], 3, axis=2)
