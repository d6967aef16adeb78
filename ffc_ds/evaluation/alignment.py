"""Faces cut out and turned upright by five landmarks, as ArcFace's training images were (arXiv 1801.07698)."""

import io
import os

import numpy as np
from PIL import Image

from ffc_ds.data.bounds import MAX_MEGAPIXELS, CorruptImage
from ffc_ds.data.decoding import decode_whole, read_image_file

SIZE = 112
# Where the eyes, the tip of the nose and the corners of the mouth belong, pixels of a 112 x 112 image.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation with scale m and shift t, complex [...], of the least-squares map z -> m z + t onto TEMPLATE.

    landmarks: float [..., 5, 2], x and y in pixels, pixel centers at integers; z is x + i y. Among similarity
    transforms without reflection the minimum is unique (Umeyama, PAMI 1991), unless all landmarks coincide.
    """
    source, target = (points[..., 0] + 1j * points[..., 1] for points in (np.asarray(landmarks, float), TEMPLATE))
    center = source.mean(-1, keepdims=True)
    spread = source - center
    m = (spread.conj() * (target - target.mean())).sum(-1) / (np.abs(spread) ** 2).sum(-1)
    return m, target.mean() - m * center[..., 0]


def align(image: Image.Image, landmarks: np.ndarray) -> Image.Image:
    """The 112 x 112 face of an RGB image, black where the image ends. landmarks: float [5, 2].

    Bilinear, as the field does it, but for Pillow's rounding, which is down.
    """
    m, t = similarity(landmarks)
    turn, shift = 1 / m, -t / m  # from the result back to the image
    half = 0.5 + 0.5j  # Pillow has pixel centers at halves
    shift += half - turn * half
    coefficients = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    size = (SIZE, SIZE)
    return image.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


class AlignedImages:
    """Faces of loosely cropped image files, aligned when they are read, as `data.faces.Faces` are.

    folder: holds the files. names: of the files. landmarks: float [n, 5, 2], pixels of each file, upright as its EXIF
    says. max_megapixels: larger images are refused.
    """

    def __init__(self, folder: str, names: np.ndarray, landmarks: np.ndarray, max_megapixels: float = MAX_MEGAPIXELS):
        self.name, self.names, self.landmarks, self.max_megapixels = folder, names, landmarks, max_megapixels

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """The aligned faces as BMP, which costs no more than a copy. Raises CorruptImage, naming the file."""
        return [self._aligned(row) for row in rows]

    def _aligned(self, row: int) -> bytes:
        path, data = os.path.join(self.name, self.names[row]), io.BytesIO()
        try:
            image = Image.fromarray(decode_whole(read_image_file(path), self.max_megapixels))
        except CorruptImage as error:
            raise CorruptImage(f"{path}: {error}") from None
        except OSError as error:
            raise CorruptImage(f"{path}: not readable ({error.strerror})") from error
        align(image, self.landmarks[row]).save(data, "BMP")
        return data.getvalue()
