"""What a file is that is not what it should be: told by how it begins, with what to do about it."""

import re

START = 1024  # bytes that tell

KINDS = {
    "empty: the download or copy broke off, get it again": rb"\Z",
    "a pointer of Git LFS, which only says where the file is: run `git lfs pull` where it is from": (
        rb"version https://git-lfs"
    ),
    "a web page, as of a download that needs a login or a confirmation: get the file itself by a browser": (
        rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|\?xml|body)"
    ),
    "an array of numpy (.npy)": rb"\x93NUMPY",
    "a file of torch.save": rb"PK\x03\x04.{26}[^/]{1,200}/(data\.pkl|\.format_version|byteorder)",
    "an archive of numpy arrays (.npz)": rb"PK\x03\x04.{26}[^/]{1,200}\.npy",
    "a zip archive: unpack it": rb"PK[\x03\x05]",
    "packed by gzip: unpack it (`gunzip`; `tar xzf` if it is a .tar.gz)": rb"\x1f\x8b",
    "packed by bzip2: unpack it": rb"BZh\d",
    "packed by xz: unpack it": rb"\xfd7zXZ\0",
    "packed by Zstandard: unpack it": rb"\x28\xb5\x2f\xfd",
    "a 7z archive: unpack it": rb"7z\xbc\xaf\x27\x1c",
    "a rar archive: unpack it": rb"Rar!\x1a\x07",
    "a tar archive: unpack it": rb".{257}ustar",
    "RecordIO of MXNet (for `prepare_data.py recordio`)": rb"\x0a\x23\xd7\xce",
    "HDF5": rb"\x89HDF\r\n",
    "a parquet file": rb"PAR1",
    "a single picture": rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|GIF8[79]a",
}
PATTERNS = {kind: re.compile(pattern, re.DOTALL | re.IGNORECASE) for kind, pattern in KINDS.items()}


def kind_of_file(start: bytes) -> str | None:
    """What a file is that begins with these bytes (START of them, or all), and what to do; None if nothing is known."""
    return next((kind for kind, pattern in PATTERNS.items() if pattern.match(start)), None)
