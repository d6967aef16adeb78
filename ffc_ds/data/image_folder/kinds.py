"""What a file is: somebody's picture, told by its content, or why it is left out."""

import re

START = 64  # bytes that tell
# Formats of pictures that Pillow reads and that can be told by their start.
IMAGE = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP, with the sizes that its second header has
    rb"|II(\*|\+)\0|MM\0(\*|\+)"  # TIFF
    rb"|RIFF.{4}WEBP"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000
    rb"|.{4}ftyp.{0,32}avi[fs]"  # AVIF
    rb"|P[1-6]\s+[#\d]"  # PBM, PGM, PPM
    rb"|\x01\xda[\0\1][\1\2]"  # SGI
    rb"|\x59\xa6\x6a\x95"  # Sun raster
    rb"|qoif",
    re.DOTALL,
)
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"),
    *(".jp2", ".j2k", ".jxl", ".heic", ".heif", ".pbm", ".pgm", ".ppm", ".pnm", ".ras", ".sgi", ".qoi"),
)
INSIDE = {
    "empty": re.compile(rb"\Z"),
    "a pointer of Git LFS (`git lfs pull` brings the file)": re.compile(rb"version https://git-lfs"),
    "a web page under an image's name": re.compile(rb"\s*<(!doctype )?html", re.IGNORECASE),
    "HEIC, which is not read (convert it to JPEG)": re.compile(rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
    "no image but by its name": re.compile(rb""),
}
OTHERS = {
    "packed (unpack it; WebDataset's tars are for `prepare_data.py webdataset`)": "zip tar gz tgz 7z rar xz bz2 zst",
    "RecordIO (for `prepare_data.py recordio`)": "rec idx",
    "LMDB (for `prepare_data.py lmdb`)": "mdb",
    "text, from which no label is read (a person is a folder)": "csv tsv txt lst json jsonl",
}
BY_ENDING = {f".{ending}": reason for reason, endings in OTHERS.items() for ending in endings.split()}
OF_MACOS = (".ds_store", ".appledouble", "__macosx", "icon\r")
OF_A_SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found")
COPIES = ("~", ".bak", ".orig", ".tmp", ".part", ".crdownload", ".swp", ".swo")
NO_FILE, UNREADABLE = "a link to nothing", "unreadable"


def clutter(name: str, is_folder: bool) -> str | None:
    """Why nothing of that name is anybody's picture, or None."""
    lower = name.lower()
    if lower.startswith("._") or lower in OF_MACOS:
        return "a companion of macOS"
    if lower in OF_A_SYSTEM:
        return "of the system"
    if not is_folder and (lower.endswith(COPIES) or lower.startswith(".#") or lower[0] == lower[-1] == "#"):
        return "a backup or unfinished copy"
    return "hidden" if lower.startswith(".") else None


def no_image(name: str, start: bytes) -> str | None:
    """Why a file that begins with these START bytes is no image, or None: its name has no say in whether it is."""
    if IMAGE.match(start):
        return None
    ending = name[name.rfind(".") :].lower()
    if ending in IMAGE_ENDINGS:
        return next(reason for reason, pattern in INSIDE.items() if pattern.match(start))
    return BY_ENDING.get(ending, "of another kind")


def is_damage(reason: str) -> bool:
    """Whether what is left out for it should have been an image."""
    return reason in INSIDE or reason.startswith((NO_FILE, UNREADABLE))
