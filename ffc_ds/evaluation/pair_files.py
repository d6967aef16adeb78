"""Pair files in InsightFace's `.bin` format: a pickle of (2n encoded images, n flags "same identity").

A pickle is a program. These files come from anywhere, so this one is read first and only then run, with stand-ins for
the few names that such files use: nothing that a file says can call into numpy or any other library.
"""

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ffc_ds.data.file_kind import file_kind
from ffc_ds.errors import UserError
from ffc_ds.evaluation.flags import read_flag

# The largest public pair files hold 14,000 images in about 0.1 GB.
MAX_BYTES = 2 * 1024**3
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")


def read_pair_bin(path: str | os.PathLike) -> tuple[list[bytes], np.ndarray]:
    """Read a pair file: 2n encoded images, pair i being images 2i and 2i + 1, and `same`, bool [n].

    Images may be stored as bytes, byte arrays, Python 2 strings or arrays of bytes, and flags as anything that
    `read_flag` takes or arrays of one element, both in lists, tuples or arrays. Raises UserError, naming the file and
    the reason, if it is missing, too large, cut off, something else than a pickle, refers to anything but bytes and
    arrays, or its images and flags are not what the format says. Never executes code from the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_BYTES:
            raise pickle.UnpicklingError(f"it is not a file of at most {MAX_BYTES} bytes")
        if kind := _other_kind(path):
            raise pickle.UnpicklingError(f"it is {kind}")
        data = path.read_bytes()
        _check_opcodes(data)
        content = _values(_PairUnpickler(io.BytesIO(data), encoding="bytes").load())
        images, same = map(_values, content) if content is not None and len(content) == 2 else (None, None)
        if images is None:
            raise pickle.UnpicklingError("it does not hold a list of images and a list of flags")
        images, same = [_image_bytes(image, i) for i, image in enumerate(images)], _flags(same)
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


def _other_kind(path: Path) -> str | None:
    """What a file is that is no pickle for certain, and what to do. Pickles of the first protocols are texts."""
    kind = file_kind(path)
    if kind in ("a pickle", "a text", None):
        return None
    if kind == "a zip archive" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            return "a file of torch.save"
        if names and all(name.endswith(".npy") for name in names):
            return "an archive of NumPy arrays (.npz)"
    return f"{kind}: unpack it" if kind.startswith("packed") or kind.endswith("archive") else kind


def _check_opcodes(data: bytes) -> None:
    """Refuse, without running it, a pickle that claims more than the file holds or could set attributes.

    Lengths of strings are checked by the parser. Python's own unpickler allocates a memo as large as the largest index;
    writers number consecutively. Attributes (of functions or classes) can only be set from a dictionary.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if "DICT" in opcode.name or "SETITEM" in opcode.name:
                raise pickle.UnpicklingError("it holds a dictionary")
            if "PUT" in opcode.name and argument > count:
                raise pickle.UnpicklingError(f"its memo index {argument} is absurd")
    except ValueError as error:
        raise pickle.UnpicklingError(f"it is no pickle, or is cut off after {len(data):,} bytes ({error})") from None


class _Dtype:
    """Stands in for numpy.dtype: numbers, byte strings, and objects, which numpy pickles as a list."""

    def __init__(self, code=b"", *_):
        code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch(r"[biuf](1|2|4|8|16)|[SUO]\d{0,7}", code):
            raise pickle.UnpicklingError(f"it holds an array of type {code[:20]!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state):
        _version, order, *_ = state
        if order in (">", b">"):
            self.numpy = self.numpy.newbyteorder(">")


class _Array:
    """Stands in for a numpy array or scalar.

    Numpy pickles them as scalar(dtype, data), _frombuffer(data, dtype, shape, order), or _reconstruct(...) followed by
    the state (version, shape, dtype, is_fortran, data). What data is wrong for what it says fails when it is looked at.
    """

    def __init__(self, *parts):
        self.__setstate__(parts)

    def __setstate__(self, parts):
        self.dtype = next((part.numpy for part in parts if isinstance(part, _Dtype)), None)
        self.data = next((part for part in reversed(parts) if isinstance(part, (bytes, bytearray, list))), b"")

    def values(self) -> list:
        """All elements, whatever the shape is."""
        if isinstance(self.data, list) or self.dtype is None:
            return list(self.data)
        return np.frombuffer(self.data, self.dtype).tolist()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes in the protocols of Python 2."""
    return text.encode("latin-1")


def _bytes(data: bytes | str = b"", *_) -> bytes:
    """Stands in for bytes and bytearray, which would also make any number of zeros of a number."""
    return data.encode("latin-1") if isinstance(data, str) else bytes(memoryview(data))


class _PairUnpickler(pickle.Unpickler):
    STAND_INS = {
        "_codecs.encode": _encode,
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytes,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": _Array,
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy.core.multiarray.scalar": _Array,
        "numpy.core.numeric._frombuffer": _Array,
    }

    def find_class(self, module, name):
        wanted = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if wanted not in self.STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {wanted[:100]}, which no pair file needs, and may be an attack")
        return self.STAND_INS[wanted]


def _values(stored: object) -> list | tuple | None:
    """The elements of a list, a tuple or an array; None of anything else."""
    return stored.values() if isinstance(stored, _Array) else stored if isinstance(stored, (list, tuple)) else None


def _image_bytes(image: object, position: int) -> bytes:
    if isinstance(image, _Array) and image.dtype is not None and image.dtype.itemsize == 1:
        image = image.data
    if not isinstance(image, (bytes, bytearray)) or not image.startswith(IMAGE_SIGNATURES):
        raise pickle.UnpicklingError(f"its item {position} is not an encoded image (JPEG, PNG, WebP, BMP, GIF or TIFF)")
    return bytes(image)


def _flags(stored: list | tuple | None) -> np.ndarray:
    if stored is None:
        raise pickle.UnpicklingError("its second part is not a list of flags")
    flags = []
    for position, flag in enumerate(stored):
        inner = _values(flag)
        flags.append(read_flag(inner[0] if inner is not None and len(inner) == 1 else flag))
        if flags[-1] is None:
            raise pickle.UnpicklingError(f"its flags are not all booleans, flag {position} first")
    return np.array(flags, dtype=bool)
