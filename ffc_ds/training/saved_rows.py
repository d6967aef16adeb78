"""Single rows of the sharded class state of a checkpoint, read without the rest.

torch.distributed.checkpoint loads a shard whole, which for a few rows, or on many ranks at once, is too much memory. A
shard lies in its file uncompressed, as torch.save writes it, so that it can be mapped.
"""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from ffc_ds.errors import UserError
from ffc_ds.training.state_files import ShardReader

DAMAGED = (OSError, ValueError, LookupError, EOFError, AttributeError, TypeError, RuntimeError, UnpicklingError)


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
        except DAMAGED as error:
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
                parts.append((first, self._map_part(place, dtype, chunk.sizes)))
        ends = [0, *(first + len(part) for first, part in parts)]
        if [first for first, _ in parts] != ends[:-1] or ends[-1] != about.size[0]:
            raise ValueError(f"head.{name} is not there in full")
        return dtype, parts

    def _map_part(self, place, dtype: torch.dtype, shape: torch.Size) -> np.ndarray:
        path = self._folder / Path(place.relative_path).name
        with open(path, "rb") as file, FakeTensorMode():  # which reads where the numbers are, but not the numbers
            part = torch.load(self._reader._slice_file(file, place), weights_only=True)
        if part.shape != shape or part.dtype != dtype or not part.is_contiguous() or part.storage_offset():
            raise ValueError(f"{path.name} holds another tensor than its index says")
        begin = place.offset + part.untyped_storage()._checkpoint_offset
        return np.memmap(path, f"<i{dtype.itemsize}", "r", begin, tuple(shape))
