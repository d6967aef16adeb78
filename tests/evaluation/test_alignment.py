"""Alignment against a slow bilinear reference, and against the transform it must undo."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from ffc_ds.data.decoding import CorruptImage
from ffc_ds.evaluation.alignment import TEMPLATE, AlignedImages, align, similarity
from tests.protocol_data import picture


def turned(points, angle, scale, shift):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T + shift


def as_complex(points):
    return points[..., 0] + 1j * points[..., 1]


def test_similarity_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    landmarks = turned(TEMPLATE, 0.4, 1.7, [30, -12]) + rng.normal(0, 3, (20, 5, 2))
    m, t = similarity(landmarks)
    for points, one_m, one_t in zip(landmarks, m, t, strict=True):
        # u = a x - b y + tx, v = b x + a y + ty, solved for a, b, tx and ty
        (x, y), zero, one = points.T, np.zeros(5), np.ones(5)
        equations = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, tx, ty = np.linalg.lstsq(equations, TEMPLATE.T.ravel(), rcond=None)[0]
        assert (one_m, one_t) == (pytest.approx(a + 1j * b), pytest.approx(tx + 1j * ty))


def test_aligned_pixels_are_interpolated_where_the_transform_says():
    image = picture(0, 0, 170, 150)
    landmarks = turned(TEMPLATE, 0.3, 0.8, [60, 20]) + np.random.default_rng(1).normal(0, 2, (5, 2))
    found = np.asarray(align(image, landmarks), dtype=float)
    m, t = similarity(landmarks)
    pixels = np.asarray(image, dtype=float)
    for v, u in np.ndindex(112, 112):
        source = (u + 1j * v - t) / m
        x, y = source.real, source.imag
        left, top = int(np.floor(x)), int(np.floor(y))
        if 0 <= left < 169 and 0 <= top < 149:
            block, dx, dy = pixels[top : top + 2, left : left + 2], x - left, y - top
            expected = (1 - dy) * ((1 - dx) * block[0, 0] + dx * block[0, 1]) + dy * (
                (1 - dx) * block[1, 0] + dx * block[1, 1]
            )
            np.testing.assert_allclose(found[v, u], expected, atol=1.01)
        elif not (-1 <= x <= 170 and -1 <= y <= 150):
            assert (found[v, u] == 0).all()


def test_landmarks_in_place_leave_the_face_as_it_is():
    face = picture(3, 3, 112, 112)
    expected = np.asarray(face, dtype=int)
    assert np.abs(np.asarray(align(face, TEMPLATE)) - expected).max() <= 1
    corner = np.asarray(align(face, TEMPLATE + [20, 0]))
    assert np.abs(corner[:, :92] - expected[:, 20:]).max() <= 1
    assert (corner[:, 92:] == 0).all()


def test_files_are_aligned_when_they_are_read_and_named_when_they_are_damaged(tmp_path):
    picture(0, 0, 90, 80).convert("L").save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff no image")
    images = AlignedImages(str(tmp_path), np.array(["a.png", "b.jpg", "c.jpg"]), np.stack([TEMPLATE * 0.6] * 3))
    with Image.open(io.BytesIO(images.encoded([0])[0])) as face:
        assert face.size == (112, 112) and face.mode == "RGB"
        np.testing.assert_array_equal(face, align(Image.open(tmp_path / "a.png").convert("RGB"), TEMPLATE * 0.6))
    for row, name in ((1, "b.jpg: not a readable image of 12 bytes"), (2, "c.jpg: not readable .No such file")):
        with pytest.raises(CorruptImage, match=name):
            images.encoded([row])
    small = AlignedImages(str(tmp_path), np.array(["a.png"]), TEMPLATE[None], max_megapixels=0.007)
    with pytest.raises(CorruptImage, match="a.png: its header announces 90 x 80 pixels"):
        small.encoded([0])


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_landmarks_are_of_the_upright_image_as_opencv_shows_it(tmp_path, kind):
    upright = picture(0, 0, 120, 150)
    lying, tags = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    tags[274] = 6  # to be turned clockwise
    path = tmp_path / f"lying.{kind}"
    lying.save(path, exif=tags, quality=95, subsampling=0)
    landmarks = turned(TEMPLATE, 0.1, 0.9, [8, 20])
    (face,) = AlignedImages(str(tmp_path), np.array([path.name]), landmarks[None]).encoded([0])
    seen = Image.fromarray(cv2.imread(str(path))[..., ::-1])
    found, expected = np.asarray(Image.open(io.BytesIO(face)), int), np.asarray(align(seen, landmarks), int)
    assert np.abs(found - expected).max() <= (3 if kind == "jpg" else 0)
    assert np.abs(expected - np.asarray(align(upright, landmarks), int)).max() <= 12
