"""Folders of pictures for tests."""

import io
from pathlib import Path

from PIL import Image


def picture(value: int = 0, kind: str = "PNG") -> bytes:
    """An image of one colour that belongs to the value."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 90)).save(file, kind)
    return file.getvalue()


def write(root: Path, *paths: str) -> Path:
    """Write a different picture to each path below the root."""
    for value, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(value))
    return root
