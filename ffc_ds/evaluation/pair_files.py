"""Pair files in InsightFace's `.bin` format: a pickle of (2n encoded images, n flags "same identity").

A pickle is a program. These files come from anywhere, so this one is read first and only then run, with stand-ins for
the few numpy names that such files use: nothing that a file says can call into numpy or any other library.
"""

import io
import os
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ffc_ds.errors import UserError

# The largest public pair files hold 14,000 images in about 0.1 GB.
MAX_BYTES = 2 * 1024**3
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF")


def read_pair_bin(path: str | os.PathLike) -> tuple[list[bytes], np.ndarray]:
    """Read a pair file: 2n encoded images, pair i being images 2i and 2i + 1, and `same`, bool [n].

    Images may be stored as bytes, Python 2 strings or uint8 arrays. Raises UserError, naming the file and the reason,
    if it is missing, too large, truncated, not a pickle, refers to anything but bytes and byte arrays, or its images
    and flags are not what the format says. Never executes code from the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_BYTES:
            raise pickle.UnpicklingError(f"it is not a file of at most {MAX_BYTES} bytes")
        data = path.read_bytes()
        _check_opcodes(data)
        content = _PairUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, (tuple, list)) or len(content) != 2 or not isinstance(content[0], (list, tuple)):
            raise pickle.UnpicklingError("it does not hold a list of images and a list of flags")
        images, same = [_image_bytes(image, i) for i, image in enumerate(content[0])], _flags(content[1])
        if not len(same) or len(images) != 2 * len(same):
            raise pickle.UnpicklingError(f"it holds {len(images)} images and {len(same)} flags, not two images a flag")
    except OSError as error:
        raise UserError(f"pair file {path} cannot be read: {error.strerror}; check the path") from error
    except Exception as error:  # damaged pickles raise errors of every kind
        raise UserError(
            f"pair file {path} is not a valid InsightFace .bin: {error or type(error).__name__}. Expected is a pickle "
            f"of a list of encoded images and a list of booleans, half as long; get or write the file again"
        ) from error
    return images, same


def write_pair_bin(path: str | os.PathLike, images: Sequence[bytes], same: np.ndarray) -> None:
    """Write a pair file of 2n encoded images and `same`, bool [n]. Raises ValueError if the lengths disagree."""
    flags = [bool(flag) for flag in same]
    if not flags or len(images) != 2 * len(flags):
        raise ValueError(f"{len(images)} images and {len(flags)} flags: a pair file holds two images a flag")
    Path(path).write_bytes(pickle.dumps((list(images), flags), protocol=4))


def _check_opcodes(data: bytes) -> None:
    """Refuse, without running it, a pickle that claims more than the file holds or could set attributes.

    Lengths of strings are checked by the parser. Python's own unpickler allocates a memo as large as the largest index;
    writers number consecutively. Attributes (of functions or classes) can only be set from a dictionary.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if "DICT" in opcode.name or "SETITEM" in opcode.name:
            raise pickle.UnpicklingError("it holds a dictionary")
        if "PUT" in opcode.name and argument > count:
            raise pickle.UnpicklingError(f"its memo index {argument} is absurd")


class _Dtype:
    """Stands in for numpy.dtype. Elements of one byte have no byte order, so the state says nothing new."""

    one_byte = False

    def __init__(self, code, *_):
        self.one_byte = code in ("u1", "b1", b"u1", b"b1")

    def __setstate__(self, state):
        pass


class _Array:
    """Stands in for a numpy array or scalar of one-byte elements and keeps its bytes.

    Numpy pickles them as scalar(dtype, data), _frombuffer(data, dtype, shape, order), or _reconstruct(...) followed by
    the state (version, shape, dtype, is_fortran, data).
    """

    data = b""

    def __init__(self, *parts):
        self.__setstate__(parts)

    def __setstate__(self, parts):
        if any(isinstance(part, _Dtype) and part.one_byte for part in parts):
            self.data = next(bytes(part) for part in parts if isinstance(part, (bytes, bytearray)))


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes in the protocols of Python 2."""
    return text.encode("latin-1")


class _PairUnpickler(pickle.Unpickler):
    STAND_INS = {
        "_codecs.encode": _encode,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": _Array,
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy.core.multiarray.scalar": _Array,
        "numpy.core.numeric._frombuffer": _Array,
    }

    def find_class(self, module, name):
        wanted = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if wanted not in self.STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {wanted}, which no pair file needs, and may be an attack")
        return self.STAND_INS[wanted]


def _image_bytes(image: object, position: int) -> bytes:
    data = image.data if isinstance(image, _Array) else image
    if not isinstance(data, (bytes, bytearray)) or not data.startswith(IMAGE_SIGNATURES):
        raise pickle.UnpicklingError(f"its item {position} is not an encoded image (JPEG, PNG, WebP or BMP)")
    return bytes(data)


def _flags(stored: object) -> np.ndarray:
    flags = list(stored.data) if isinstance(stored, _Array) else stored
    if not isinstance(flags, (list, tuple)):
        raise pickle.UnpicklingError("its second part is not a list of flags")
    flags = [flag.data[0] if isinstance(flag, _Array) and flag.data else flag for flag in flags]
    if not all(isinstance(flag, int) and flag in (0, 1) for flag in flags):
        raise pickle.UnpicklingError("its flags are not all booleans")
    return np.array(flags, dtype=bool)
