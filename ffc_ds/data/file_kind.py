"""What a file is that is not what it should be: told by its first bytes, for messages."""

import re
from pathlib import Path

START = 512  # bytes that tell
TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z")
KINDS = {
    "a pointer of Git LFS (`git lfs pull` brings the file itself)": rb"version https://git-lfs",
    "a web page (the download gave a message in its place)": rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml)",
    "a zip archive": rb"PK(\x03\x04|\x05\x06)",
    "packed by gzip": rb"\x1f\x8b",
    "packed by bzip2": rb"BZh[1-9]",
    "packed by xz": rb"\xfd7zXZ\0",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "a tar archive": rb".{257}ustar",
    "an HDF5 file, as Keras writes": rb"\x89HDF\r\n",
    "a NumPy array": rb"\x93NUMPY",
    "a file of MXNet's parameters": rb"\x12\x01\0\0\0\0\0\0",
    "RecordIO": rb"\x0a\x23\xd7\xce",
    "a JPEG image": rb"\xff\xd8\xff",
    "a PNG image": rb"\x89PNG\r\n",
    "a PDF document": rb"%PDF",
    "safetensors": rb".{6}\0\0\{",
    "an ONNX model": rb"\x08[\x01-\x1f](\x12|\x1a|\x22|\x32|\x3a|\x42)",
    "a pickle": rb"\x80[\x02-\x05]",
}
PATTERNS = {kind: re.compile(pattern, re.DOTALL | re.IGNORECASE) for kind, pattern in KINDS.items()}


def file_kind(path: Path) -> str | None:
    """What a file is, as part of a sentence; None if its first bytes do not say. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(START)
    if not start.strip(b"\0"):
        return "all zeros" if start else "empty"
    for kind, pattern in PATTERNS.items():
        if pattern.match(start):
            return kind
    return "a text" if TEXT.match(start) else None
