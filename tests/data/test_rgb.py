"""Pixels of every kind of image against Pillow's own tools, `datasets`, transformers, OpenCV and arithmetic by hand."""

import io
import itertools
import struct
import zlib

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps, features
from transformers.image_transforms import convert_to_rgb

from ffc_ds.data.decoding import CorruptImage, decode, decode_whole

HIGH, WIDE = 24, 40
Y, X = np.mgrid[:HIGH, :WIDE]
PICTURE = np.stack([6 * X, 10 * Y, 255 - 3 * (X + Y)], axis=-1).astype(np.uint8)  # smooth, and no two corners alike
LEVELS = np.array([[0, 1, 255, 256, 257, 1000], [4095, 4096, 32767, 32768, 65534, 65535]], np.uint16)
# For each orientation of EXIF, what a camera that was held so wrote of the upright pixels p.
HELD = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}
FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "MPO": {"quality": 95}}
if features.check("avif"):
    FORMATS["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
LOSSY = ("JPEG", "MPO", "AVIF")


def encode(pixels, kind, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def by_pillow(encoded):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


def by_datasets(encoded):
    return np.asarray(datasets.Image().decode_example({"bytes": encoded, "path": None}).convert("RGB"))


def by_opencv(encoded):
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def on_white(rgba):
    """By hand: each colour and white, in the shares that alpha says."""
    share = rgba[..., 3:] / 255
    return share * rgba[..., :3] + (1 - share) * 255


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(found.astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", HELD)
def test_every_orientation_is_turned_upright(kind, orientation):
    encoded = encode(HELD[orientation](PICTURE), kind, exif=exif(orientation), **FORMATS[kind])
    assert_close(decode_whole(encoded), PICTURE, 12 if kind in LOSSY else 0)
    assert np.array_equal(decode_whole(encoded), by_pillow(encoded))
    assert np.array_equal(decode_whole(encoded), by_datasets(encoded))
    if kind != "AVIF":  # which OpenCV does not turn
        assert_close(decode_whole(encoded), by_opencv(encoded), 3 if kind in LOSSY else 0)


def test_orientation_may_stand_right_before_the_pixels():
    encoded, tags = encode(HELD[6](PICTURE), "JPEG", quality=95), exif(6).tobytes()
    scan = encoded.index(b"\xff\xda")
    encoded = encoded[:scan] + b"\xff\xe1" + (len(tags) + 2).to_bytes(2) + tags + encoded[scan:]
    assert_close(decode_whole(encoded), PICTURE, 12)
    assert np.array_equal(decode_whole(encoded), by_pillow(encoded))


@pytest.mark.parametrize("shape", [(32, 32), (40, 40), (100, 60), (16, 30)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_image_is_resized_and_written_in_place(kind, orientation, shape):
    pixels = cv2.resize(PICTURE, shape)
    turned = encode(HELD[orientation](pixels), kind, exif=exif(orientation), quality=95)
    around = np.full((3, 32, 32, 3), 77, np.uint8)
    decode(turned, 32, around[1])
    assert_close(around[1], decode(encode(pixels, kind, quality=95), 32), 12 if kind == "JPEG" else 1)
    assert (around[::2] == 77).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "tags", [exif(0), exif(9), b"Exif\0\0 and nothing that can be read", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_what_is_no_orientation_changes_nothing(kind, tags):
    encoded = encode(PICTURE, kind, exif=tags, **FORMATS[kind])
    assert_close(decode_whole(encoded), PICTURE, 12 if kind == "JPEG" else 0)


def test_xmp_tells_the_orientation_where_exif_does_not():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    silent, other = Image.Exif(), exif(8)
    silent[305] = "of some software"
    for tags, held in ((b"", 6), (silent, 6), (other, 8)):
        encoded = encode(HELD[held](PICTURE), "JPEG", xmp=xmp, exif=tags, quality=95)
        assert_close(decode_whole(encoded), PICTURE, 12)
        assert np.array_equal(decode_whole(encoded), by_datasets(encoded))


@pytest.mark.parametrize(
    ("kind", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2"), ("JPEG2000", "<u2")]
)
def test_grey_of_16_bits_keeps_the_upper_8(kind, order):
    encoded = encode(Image.fromarray(LEVELS.astype(order)), kind)
    expected = np.array([[0, 0, 0, 1, 1, 3], [15, 16, 127, 128, 255, 255]])
    assert np.array_equal(decode_whole(encoded), np.stack([expected] * 3, -1))
    assert np.array_equal(decode_whole(encoded), by_opencv(encoded))


def png(kind, bits, rows, transparent=b""):
    """A PNG of any type and depth: rows of bytes, and the chunk that says which colour is transparent."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    samples = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    header = struct.pack(">IIBBBBB", len(rows[0]) * 8 // bits // samples, len(rows), bits, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tRNS", transparent) if transparent else b"",
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        ]
    )


def test_colours_of_16_bits_keep_the_upper_8():
    encoded = png(2, 16, [row.astype(">u2").tobytes() for row in LEVELS])
    assert np.array_equal(decode_whole(encoded), (LEVELS >> 8).reshape(2, 2, 3))
    assert np.array_equal(decode_whole(encoded), by_opencv(encoded))


def tiff(rows, bits, photometric, sample_format=1):
    """A little-endian TIFF of one uncompressed strip of grey levels. photometric: 0 for white is zero."""
    data, tags = b"".join(rows), 10
    start = 8 + 2 + 12 * tags + 4
    values = {256: len(rows[0]) * 8 // bits, 257: len(rows), 258: bits, 259: 1, 262: photometric, 273: start, 277: 1}
    values |= {278: len(rows), 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in values.items())
    return struct.pack("<2sHIH", b"II", 42, 8, tags) + entries + bytes(4) + data


def test_the_odd_greys_of_tiff():
    white_is_zero = tiff([row.tobytes() for row in LEVELS], 16, photometric=0)
    assert np.array_equal(decode_whole(white_is_zero)[..., 0], 255 - (LEVELS >> 8))
    assert np.array_equal(decode_whole(white_is_zero), by_opencv(white_is_zero))
    pairs = [(0, 15), (16, 2048), (4080, 4095)]
    packed = b"".join((first << 12 | second).to_bytes(3) for first, second in pairs)
    assert decode_whole(tiff([packed], 12, photometric=1))[0, :, 1].tolist() == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[0, 0.25, 0.5, 1]], np.float32), [0, 64, 128, 255]),
        (np.array([[0, 0.7, 127.6, 255]], np.float32), [0, 1, 128, 255]),
        (np.array([[0, 1, 254, 255]], np.int32), [0, 1, 254, 255]),
        (np.array([[0, 255, 256, 65535]], np.int32), [0, 0, 1, 255]),
    ],
)
def test_grey_of_32_bits_whose_range_is_plain(levels, expected):
    assert decode_whole(encode(levels, "TIFF"))[0].tolist() == [[level] * 3 for level in expected]
    if levels.dtype == np.float32:
        assert decode_whole(encode(levels, "PPM"))[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize(
    ("levels", "range_"),
    [
        (np.array([[-1, 1]], np.float32), "-1 to 1"),
        (np.array([[0, 4095]], np.float32), "0 to 4095"),
        (np.array([[0, np.nan]], np.float32), "nan to nan"),
        (np.array([[0, np.inf]], np.float32), "0 to inf"),
        (np.array([[-3, 90]], np.int32), "-3 to 90"),
        (np.array([[0, 65536]], np.int32), "0 to 65536"),
    ],
)
def test_grey_of_no_known_range_is_refused(levels, range_):
    with pytest.raises(CorruptImage, match=rf"grey levels from {range_} are of no known range: save it with 8 or 16"):
        decode_whole(encode(levels, "TIFF"))


def test_a_dark_image_of_16_bits_is_dark():
    encoded = encode(Image.fromarray(np.array([[0, 100, 255]], np.uint16)), "PPM")
    assert Image.open(io.BytesIO(encoded)).mode == "I" and not decode_whole(encoded).any()


RGBA = np.dstack([PICTURE, (X * 255 // (WIDE - 1)).astype(np.uint8)])


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True}), ("TGA", {})]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(kind, options, mode):
    image = Image.fromarray(RGBA).convert(mode)
    encoded = encode(image, kind, **options)
    assert_close(decode_whole(encoded), on_white(np.asarray(image.convert("RGBA"))), 1)
    assert np.array_equal(decode_whole(encoded), np.asarray(convert_to_rgb(Image.open(io.BytesIO(encoded)))))


def test_one_transparent_colour_becomes_white():
    palette = Image.fromarray(PICTURE).quantize(16)
    indices, white = np.asarray(palette), np.full(3, 255)
    expected = np.where((indices == 5)[..., None], white, np.asarray(palette.convert("RGB")))
    for kind in ("PNG", "GIF"):
        assert np.array_equal(decode_whole(encode(palette, kind, transparency=5)), expected)
    alpha = bytes(range(0, 256, 17))
    rgba = np.dstack([np.asarray(palette.convert("RGB")), np.frombuffer(alpha, np.uint8)[indices]])
    assert_close(decode_whole(encode(palette, "PNG", transparency=alpha)), on_white(rgba), 1)

    grey, black = np.asarray(Image.fromarray(PICTURE).convert("L")), np.zeros((HIGH, WIDE), np.uint8)
    expected = np.where(grey == grey[3, 3], 255, grey)
    assert np.array_equal(decode_whole(encode(grey, "PNG", transparency=int(grey[3, 3])))[..., 2], expected)
    expected = np.where((PICTURE[7, 7] == PICTURE).all(-1, keepdims=True), white, PICTURE)
    assert np.array_equal(decode_whole(encode(PICTURE, "PNG", transparency=tuple(PICTURE[7, 7].tolist()))), expected)
    assert (decode_whole(encode(Image.fromarray(black).convert("1"), "PNG", transparency=0)) == 255).all()
    deep = png(0, 16, [row.astype(">u2").tobytes() for row in LEVELS], transparent=struct.pack(">H", 1000))
    assert decode_whole(deep)[..., 0].tolist() == [[0, 0, 0, 1, 1, 255], [15, 16, 127, 128, 255, 255]]


def test_grey_and_alpha_of_16_bits():
    pairs = np.array([[1000, 65535], [0, 0], [0, 32768]], ">u2")
    assert decode_whole(png(4, 16, [pairs.tobytes()]))[0, :, 0].tolist() == [3, 255, 127]


def with_adobe_transform(jpeg, transform):
    """The Adobe marker says whether a JPEG of four channels is CMYK (0) or YCCK (2); None takes it out."""
    start = jpeg.index(b"\xff\xee\0\x0eAdobe")
    segment = b"" if transform is None else jpeg[start : start + 15] + bytes([transform])
    return jpeg[:start] + segment + jpeg[start + 16 :]


@pytest.mark.parametrize("transform", [0, 2, None])
def test_jpegs_of_four_channels_are_inverted_as_adobe_writes_them(transform):
    encoded = with_adobe_transform(encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95), transform)
    assert_close(decode_whole(encoded), by_opencv(encoded), 4)
    assert_close(decode_whole(encoded), by_datasets(encoded), 1)
    if transform != 2:
        assert_close(decode_whole(encoded), PICTURE, 16)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_of_tiff(mode):
    image = Image.fromarray(PICTURE).convert(mode)
    assert np.array_equal(decode_whole(encode(image, "TIFF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {})]
)
def test_of_several_frames_the_first_is_seen(kind, options):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (40, 200, 90)]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(encoded)).n_frames == 3
    assert (decode_whole(encoded) == 40).all()


@pytest.mark.parametrize("kind", ["BMP", "PCX", "PPM", "SGI", "TGA", "JPEG2000"])
def test_further_formats_come_back_exactly(kind):
    assert np.array_equal(decode_whole(encode(PICTURE, kind)), PICTURE)


def test_a_colour_profile_is_not_looked_at():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode_whole(encode(PICTURE, kind, icc_profile=profile)), PICTURE)


def test_a_program_is_no_image_and_neither_is_heic():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    for encoded in (postscript, b"\0\0\0\x18ftypheic" + bytes(100)):
        with pytest.raises(CorruptImage, match=rf"not a readable image of {len(encoded)} bytes \(unknown format\)"):
            decode_whole(encoded)


def test_all_orientations_differ():
    turned = [HELD[orientation](PICTURE) for orientation in HELD]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(turned, 2))
