import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffc_ds.data.decoding import CorruptImage, decode, decode_many
from ffc_ds.errors import UserError


def picture(size=32, width=None):
    """Smooth, so that JPEG keeps it to a few grey levels, and different in every channel and direction."""
    y, x = np.mgrid[:size, : width or size] / size
    return np.stack([200 * x + 20, 180 * y + 30, 100 * (x + y) / 2 + 60], axis=-1).astype(np.uint8)


def encode(pixels, kind, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
def test_lossless_formats_come_back_exactly(kind, options):
    assert np.array_equal(decode(encode(picture(), kind, **options), 32), picture())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_equals_pillow(mode):
    encoded = encode(picture(), "JPEG", mode, quality=95)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    decoded = decode(encoded, 32)
    assert decoded.dtype == np.uint8 and np.abs(decoded.astype(int) - expected).max() <= 1
    assert np.abs(decoded.astype(int) - np.asarray(Image.fromarray(picture()).convert(mode).convert("RGB"))).max() < 8


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    encoded = encode(picture(), "TIFF" if mode == "CMYK" else "PNG", mode)
    expected = np.asarray(Image.fromarray(picture()).convert(mode).convert("RGB"))
    assert np.array_equal(decode(encoded, 32), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(250, 250), (40, 40), (16, 16), (64, 48)])
def test_other_sizes_are_resampled(kind, shape):
    decoded = decode(encode(picture(*shape), kind, quality=95), 32)
    expected = np.asarray(Image.fromarray(picture(*shape)).resize((32, 32), Image.Resampling.BILINEAR))
    assert decoded.shape == (32, 32, 3)
    assert np.abs(decoded.astype(int) - expected).max() <= (0 if kind == "PNG" else 8)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"not an image",
        b"\xff\xd8\xff",
        encode(picture(), "PNG")[:60],
        encode(picture(), "JPEG")[:400],
        b"\xff\xd8" + bytes(100),
    ],
    ids=["empty", "text", "jpeg start", "half png", "half jpeg", "zeros"],
)
def test_damage_is_a_corrupt_image(encoded):
    with pytest.raises(CorruptImage, match=f"not a readable image of {len(encoded)} bytes"):
        decode(encoded, 32)


def test_decode_many():
    encoded = [encode(picture(), "PNG"), encode(picture(), "JPEG"), encode(picture(48), "PNG")]
    out = np.zeros((3, 32, 32, 3), np.uint8)
    assert decode_many(encoded, 32, out) is out
    assert all(np.array_equal(row, decode(one, 32)) for row, one in zip(out, encoded, strict=True))
    assert np.array_equal(decode_many(encoded, 32), out) and decode_many([], 32).shape == (0, 32, 32, 3)


def test_decode_many_names_the_damaged_image():
    with pytest.raises(UserError, match=r"^image 1: not a readable image of 3 bytes"):
        decode_many([encode(picture(), "PNG"), b"abc"], 32)


def test_decode_many_leaves_a_damaged_image_to_whom_it_is_told():
    out, told = np.zeros((3, 32, 32, 3), np.uint8), []
    good, damaged = encode(picture(), "PNG"), encode(picture(), "JPEG")[:400]
    decode_many([good, damaged, good], 32, out, lambda position, error: told.append((position, str(error))))
    assert [position for position, _ in told] == [1] and "not a readable image of 400 bytes" in told[0][1]
    assert np.array_equal(out[0], picture()) and np.array_equal(out[2], picture())


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(32, 32), (16, 16), (16, 64), (250, 250), (40, 33)])
def test_decoding_in_place_changes_nothing_else(kind, shape):
    around = np.full((3, 32, 32, 3), 77, np.uint8)
    encoded = encode(picture(*shape), kind)
    assert decode(encoded, 32, around[1]).base is around
    assert np.array_equal(around[1], decode(encoded, 32)) and np.all(around[::2] == 77)


def anonymous_kib():
    """Memory of this process that no file has."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is in use")
def test_memory_stays_flat_where_a_decoder_loses_some():
    encoded = encode(picture(112), "JPEG")
    for count in (200, 2000):
        before = anonymous_kib()
        for _ in range(count):
            decode(encoded, 32)
    assert anonymous_kib() - before < 2000  # a KiB each, of the four that are lost
