"""How large an image may be: told by its header and its length, before memory is taken for its pixels."""

from ffc_ds.errors import UserError

MAX_MEGAPIXELS = 64.0  # unless a setting says otherwise
PILLOWS_MEGAPIXELS = 178  # Pillow itself refuses what is larger
MAX_BYTES = 1 << 29  # of an encoded image


class CorruptImage(UserError):
    """An image that cannot be read or decoded, or is too large to be."""


def check_size(width: int, height: int, max_megapixels: float) -> None:
    """Raise CorruptImage for an image of more than `max_megapixels`."""
    if width * height > 1e6 * max_megapixels:
        raise CorruptImage(f"its header announces {width:,} x {height:,} pixels, {_allowed(max_megapixels)}")


def too_large_for_pillow(max_megapixels: float) -> CorruptImage:
    """Of what size, Pillow does not say."""
    return CorruptImage(f"its header announces more than {PILLOWS_MEGAPIXELS} megapixels, {_allowed(max_megapixels)}")


def check_bytes(count: int) -> None:
    """Raise CorruptImage for an encoded image of more than MAX_BYTES."""
    if count > MAX_BYTES:
        raise CorruptImage(f"it is {count:,} bytes long, and an image of more than {MAX_BYTES:,} is not read")


def check_max_megapixels(value: float, setting: str = "max_megapixels") -> None:
    """Raise UserError for a bound that cannot be kept."""
    if not 0 < value <= PILLOWS_MEGAPIXELS:
        raise UserError(f"{setting} is {value}; it must be above 0, and at most {PILLOWS_MEGAPIXELS}.")


def _allowed(max_megapixels: float) -> str:
    return f"and max_megapixels allows {max_megapixels:g} million"
