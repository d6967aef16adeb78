"""Images that announce more pixels than are to be decoded: refused by what their header says, without their memory."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, features

from ffc_ds.config.settings import parse_config
from ffc_ds.data import bounds
from ffc_ds.data.bounds import CorruptImage
from ffc_ds.data.decoding import decode, decode_whole, read_image_file
from ffc_ds.data.importers.image_check import damage
from ffc_ds.errors import UserError

SIDE = 2000  # 4 megapixels, which take 16 MB once they are decoded
ALLOWED = 6 << 20  # bytes, for all of them together


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat_images(side):
    """A flat picture in every format: each can be decoded, and its file is small."""
    colour = Image.new("RGB", (side, side), (90, 120, 200))
    grey, black, deep = colour.convert("L"), colour.convert("1"), np.full((side, side), 40_000, np.uint16)
    images = [
        encode(colour, "JPEG"),
        encode(colour, "JPEG", progressive=True),
        encode(colour, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        encode(colour.convert("CMYK"), "JPEG", progressive=True),
        encode(colour, "PNG", compress_level=1),
        encode(Image.fromarray(deep), "PNG", compress_level=1),
        encode(colour.convert("P"), "GIF"),
        encode(colour, "WEBP", method=0),
        encode(colour, "TIFF", compression="tiff_adobe_deflate"),
        encode(Image.fromarray(deep), "TIFF", compression="tiff_adobe_deflate"),
        encode(black, "BMP"),
        encode(black, "PPM"),
        encode(grey, "JPEG2000"),
        encode(colour, "TGA", compression="tga_rle"),
    ]
    return [*images, encode(colour, "AVIF", speed=10)] if features.check("avif") else images


def announcing(side):
    """Files of a few bytes whose headers announce that size, with next to no pixels behind."""
    small = Image.new("RGB", (16, 16))
    png, gif, bmp, tiff = (encode(small, kind) for kind in ("PNG", "GIF", "BMP", "TIFF"))
    webp = encode(small, "WEBP", save_all=True, append_images=[small.point(lambda level: 255 - level)])
    header, frame, tags = b"IHDR" + struct.pack(">II", side, side) + png[24:29], gif.index(b","), bytearray(tiff)
    (directory,) = struct.unpack_from("<I", tiff, 4)
    for entry in range(directory + 2, directory + 2 + 12 * tiff[directory], 12):
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):  # width and height
            struct.pack_into("<HII", tags, entry + 2, 4, 1, side)
    jpegs = (encode(small, "JPEG"), encode(small, "JPEG", progressive=True))
    return [
        *(
            re.sub(rb"(\xff[\xc0\xc2]\0\x11\x08)....", rb"\g<1>" + struct.pack(">HH", side, side), jpeg)
            for jpeg in jpegs
        ),
        png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:],
        gif[:6]
        + struct.pack("<HH", side, side)
        + gif[10 : frame + 5]
        + struct.pack("<HH", side, side)
        + gif[frame + 9 :],
        bmp[:18] + struct.pack("<ii", side, side) + bmp[26:],
        bytes(tags),
        b"P6 %d %d 255\n" % (side, side),
        webp[:24] + 2 * (side - 1).to_bytes(3, "little") + webp[30:],
    ]


CHILD = """
import json, sys, warnings
from pathlib import Path
from ffc_ds.data.decoding import CorruptImage, decode, decode_whole
from ffc_ds.data.importers.image_check import damage

STATUS = Path("/proc/self/status")

def outcomes(image, bound):
    for read in (lambda: decode(image, 32, max_megapixels=bound), lambda: decode_whole(image, bound)):
        try:
            read()
            yield "decoded"
        except CorruptImage as error:
            yield str(error)
    for check in ("header", "full"):
        yield damage(image, check, bound)

def peak():
    return next(int(line.split()[1]) << 10 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))

bound, (small, large) = float(sys.argv[1]), (sorted(Path(sys.argv[2], name).iterdir()) for name in ("small", "large"))
warnings.simplefilter("error")
for path in small:
    assert [*outcomes(path.read_bytes(), bound)] == ["decoded", "decoded", None, None], path
before = peak()
said = [[*outcomes(path.read_bytes(), bound)] for path in large]
print(json.dumps([peak() - before, said]))
"""


def outcomes(folder, images, bound):
    """Growth of the peak memory (bytes) of a process that reads the images in every way, and what it says of each."""
    for name, files in (("small", flat_images(16)), ("large", images)):
        (folder / name).mkdir()
        for number, image in enumerate(files):
            (folder / name / f"{number:02}").write_bytes(image)
    done = subprocess.run([sys.executable, "-c", CHILD, str(bound), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_large_images_are_refused_before_they_are_decoded(tmp_path):
    images = flat_images(SIDE)
    grown, said = outcomes(tmp_path, images, 1)
    reason = "its header announces 2,000 x 2,000 pixels, and max_megapixels allows 1 million"
    assert said == [[reason] * 4] * len(images)
    assert grown < ALLOWED


@pytest.mark.parametrize(
    ("side", "announced"), [(9_000, "9,000 x 9,000 pixels"), (13_000, "13,000 x 13,000 pixels"), (50_000, None)]
)
def test_a_few_bytes_that_announce_much_are_refused(tmp_path, side, announced):
    images = announcing(side)
    grown, said = outcomes(tmp_path, images, bounds.MAX_MEGAPIXELS)
    for image, found in zip(images, said, strict=True):
        for reason in found:
            assert re.fullmatch(
                rf"its header announces ({announced or '50,000 x 50,000 pixels|more than 178 megapixels'}), "
                "and max_megapixels allows 64 million",
                reason,
            ), (image[:40], found)
    assert grown < ALLOWED


def test_the_bound_is_sharp():
    for kind in ("PNG", "JPEG", "WEBP"):
        just, above = (encode(Image.new("RGB", (500, height)), kind) for height in (200, 201))
        assert decode(just, 8, max_megapixels=0.1).shape == (8, 8, 3) and damage(just, "full", 0.1) is None
        with pytest.raises(CorruptImage, match="500 x 201 pixels, and max_megapixels allows 0.1 million"):
            decode(above, 8, max_megapixels=0.1)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with path.open("r+b") as file:
        file.truncate(bounds.MAX_BYTES + 1)
    with pytest.raises(CorruptImage, match="it is 536,870,913 bytes long, and an image of more than 536,870,912"):
        read_image_file(path)


def test_bytes_are_counted_before_they_are_looked_at(monkeypatch):
    image = encode(Image.new("RGB", (8, 8)), "JPEG")
    monkeypatch.setattr(bounds, "MAX_BYTES", len(image) - 1)
    for read in (lambda: decode(image, 8), lambda: decode_whole(image)):
        with pytest.raises(CorruptImage, match=f"it is {len(image)} bytes long"):
            read()
    assert damage(image, "header") == damage(image, "full") and "bytes long" in damage(image, "full")


@pytest.mark.parametrize("value", ["0", "-1", "179", ".nan", ".inf"])
def test_a_bound_that_cannot_be_kept_is_refused(value):
    with pytest.raises(
        UserError, match=rf"data.max_megapixels is .*{value.strip('.')}.*; it must be above 0, and at most 178"
    ):
        parse_config(["--data.max_megapixels", value])
