"""Single rows of the sharded class state of a checkpoint, read without the rest.

torch.distributed.checkpoint loads a shard whole, which for a few rows, or on many ranks at once, is too much memory. A
shard lies in its file as torch.save writes it: in a zip archive, uncompressed, so that it can be mapped.
"""

import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from ffc_ds.errors import UserError
from ffc_ds.training.state_files import ShardReader

DAMAGED = (OSError, ValueError, LookupError, EOFError, AttributeError, TypeError, UnpicklingError, struct.error)
LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a zip archive: the lengths of its name and of what else is there


class SavedRows:
    """The shards of a head, `head.NAME` in a checkpoint, of which row i is of identity i. Raises UserError if they
    cannot be read.

    shapes: (rows, numbers in a row) of each, by name.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "class"
        try:
            self._reader = ShardReader(self._folder)
            metadata = self._reader.read_metadata()
            tensors = {
                name.removeprefix("head."): about
                for name, about in metadata.state_dict_metadata.items()
                if name.startswith("head.") and isinstance(about, TensorStorageMetadata)
            }
            self.shapes = {name: tuple(about.size) for name, about in tensors.items()}
            self._parts = {name: self._map(name, about, metadata.storage_data) for name, about in tensors.items()}
        except (*DAMAGED, zipfile.BadZipFile) as error:
            raise UserError(f"{self._folder} cannot be read: {error}.") from error

    def read(self, name: str, rows: np.ndarray) -> Tensor:
        """These rows, int64 [n] ascending, of a shard, in its own type: [n, numbers in a row]."""
        dtype, parts = self._parts[name]
        found = [part[rows[slice(*np.searchsorted(rows, (first, first + len(part))))] - first] for first, part in parts]
        return torch.from_numpy(np.concatenate(found)).view(dtype)

    def _map(self, name: str, about: TensorStorageMetadata, places: dict) -> tuple[torch.dtype, list]:
        """Its type, and its parts with their first rows, ascending: integers of the size of that type."""
        dtype, parts = about.properties.dtype, []
        for chunk in sorted(about.chunks, key=lambda chunk: chunk.offsets[0]):
            first, *others = chunk.offsets
            if any(others) or tuple(chunk.sizes[1:]) != tuple(about.size[1:]):
                raise ValueError(f"head.{name} is not made of whole rows")
            if chunk.sizes[0]:
                place = places[MetadataIndex(f"head.{name}", chunk.offsets)]
                parts.append((first, self._map_part(place, f"<i{dtype.itemsize}", tuple(chunk.sizes))))
        ends = [0, *(first + len(part) for first, part in parts)]
        if [first for first, _ in parts] != ends[:-1] or ends[-1] != about.size[0]:
            raise ValueError(f"head.{name} is not there in full")
        return dtype, parts

    def _map_part(self, place, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self._folder / Path(place.relative_path).name
        with open(path, "rb") as file:
            archive = self._reader._slice_file(file, place)
            (entry,) = (each for each in zipfile.ZipFile(archive).infolist() if each.filename.endswith("/data/0"))
            size = np.dtype(dtype).itemsize * np.prod(shape)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
                raise ValueError(f"{path.name} is of another size than its index says")
            archive.seek(entry.header_offset)
            lengths = LOCAL_HEADER.unpack(archive.read(LOCAL_HEADER.size))
        begin = place.offset + entry.header_offset + LOCAL_HEADER.size + sum(lengths)
        return np.memmap(path, dtype, "r", begin, shape)
