"""The files of a tar: where they are, without reading them, and up to where the tar is damaged."""

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512  # bytes; a tar consists of such, and ends in empty ones
LARGEST_HEADER = 1 << 20  # bytes; long names are stored like files, and tarfile reads them whole
HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError)


class File(NamedTuple):
    """A file in a tar."""

    name: str
    """Its path, without the ending."""
    ending: str
    """Lower case, without the dot."""
    size: int
    """Bytes, by the tar's account."""
    offset: int
    """Where they are; -1 for the empty stretches that a sparse file leaves out."""


class BoundedHeader(tarfile.TarInfo):
    """A member that is not read into memory for its name, whatever length that announces."""

    def _proc_member(self, tar):
        if self.type in HEADERS and not 0 <= self.size <= LARGEST_HEADER:
            raise tarfile.SubsequentHeaderError(f"a name of {self.size:,} bytes")
        return super()._proc_member(tar)


def files_of(tar: tarfile.TarFile) -> Iterator[File]:
    """Every file but those that nobody put there on purpose: hidden ones, companions of macOS, headers as files.

    `tar` is opened with BoundedHeader. Raises one of DAMAGE where the rest cannot be read.
    """
    places = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # would otherwise grow with the tar
        if member.size < 0:  # the next one would be this one
            raise tarfile.ReadError(f"a file of {member.size} bytes")
        path = posixpath.normpath(member.name)
        name, ending = posixpath.splitext(path)
        if member.islnk() and posixpath.normpath(member.linkname) in places:  # the same file under another name
            size, offset = places[posixpath.normpath(member.linkname)]
        elif member.isreg():
            size, offset = member.size, -1 if member.issparse() else member.offset_data
        else:
            continue
        places[path] = size, offset
        if not any(map(_is_clutter, path.split("/"))):
            yield File(name, ending[1:].lower(), size, offset)
    _check_end(tar)


def read(tar: tarfile.TarFile, file: File) -> bytes:
    """What a file holds. Raises ValueError if it is not all there, or DAMAGE."""
    if file.offset < 0:
        raise ValueError("it is stored as a sparse file, which is not read: make the tar without --sparse")
    tar.fileobj.seek(file.offset)
    content = tar.fileobj.read(file.size)
    if len(content) < file.size:
        raise ValueError(f"truncated: {len(content):,} of its {file.size:,} bytes are there")
    return content


def _is_clutter(part: str) -> bool:
    return part == "__MACOSX" or part.startswith("PaxHeader") or (part.startswith(".") and part.strip(".") != "")


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError unless the archive ends here, and the file with it; tarfile takes a damaged header for an end."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("no end of archive where one was expected")
    while padding := tar.fileobj.read(1 << 20):
        if padding.strip(b"\0"):
            raise tarfile.ReadError("more follows on the end of the archive, as if tars had been put together by cat")
