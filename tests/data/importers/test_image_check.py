import io
import struct

import numpy as np
import pytest
from PIL import Image

from ffc_ds.data.importers import image_check
from ffc_ds.data.importers.image_check import damage

PIXELS = np.random.default_rng(0).integers(256, size=(24, 20, 3), dtype=np.uint8)


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


END = 25  # bytes; without end marker and checksums, a PNG is readable still
KINDS = {"JPEG": encoded("JPEG"), "PNG": encoded("PNG"), "WEBP": encoded("WEBP"), "BMP": encoded("BMP")}


@pytest.mark.parametrize("check", ["header", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_pass_and_every_truncation_is_found(kind, check):
    image = KINDS[kind]
    assert damage(image, check) is None
    for length in [*range(0, 60), *range(60, len(image) - END, 53), len(image) - END]:
        assert "not a " in damage(image[:length], check)


def test_the_header_check_decodes_only_what_it_doubts(monkeypatch):
    decoded = []
    monkeypatch.setattr(image_check, "decode", lambda image, size, max_megapixels: decoded.append(image))
    monkeypatch.setattr(image_check, "_complaint", lambda image, strict: decoded.append(image))
    odd = [KINDS["JPEG"] + b"\0\0", KINDS["PNG"] + b"more", KINDS["WEBP"]]
    for image in (KINDS["JPEG"], KINDS["PNG"], *odd):
        damage(image, "header")
    assert decoded == odd
    damage(KINDS["JPEG"], "full")
    assert decoded == [*odd, KINDS["JPEG"]]


def test_bytes_after_the_end_do_no_harm_and_no_dimensions_do():
    assert damage(KINDS["JPEG"] + b"\0\0", "header") is None
    assert damage(KINDS["PNG"][:16] + struct.pack(">II", 0, 24) + KINDS["PNG"][24:], "header")
    start = KINDS["JPEG"].index(b"\xff\xc0") + 5
    assert damage(KINDS["JPEG"][:start] + bytes(4) + KINDS["JPEG"][start + 4 :], "header")


def test_only_the_full_check_finds_damage_in_the_middle():
    jpeg = KINDS["JPEG"]
    damaged = jpeg[: jpeg.index(b"\xff\xda") + 40] + jpeg[-2:]
    assert damage(damaged, "header") is None and "not a whole JPEG" in damage(damaged, "full")
    png = bytearray(KINDS["PNG"])
    png[len(png) // 2] ^= 255
    assert damage(bytes(png), "header") is None and "not a readable image" in damage(bytes(png), "full")
