"""How torch.distributed.checkpoint gets at files: through a `Writer`, and as data alone.

It would unpickle the index that it finds, which runs the code of whoever made it. Here only the few classes below come
out of it.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from ffc_ds.training.manifest import Writer

# What the index of a sharded checkpoint is made of. BytesStorageMetadata is not there: its bytes would be unpickled.
OF_INDEX = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"},
}


class ShardWriter(FileSystemWriter):
    """For torch.distributed.checkpoint.save."""

    def __init__(self, folder: Path, writer: Writer):
        # The writer syncs; what is written is in host memory, where the library shall look for no device.
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0)
        self.fs = _Files(writer)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()  # without the path where it was written


class ShardReader(FileSystemReader):
    """For torch.distributed.checkpoint.load."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _IndexReader(file).load()
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Files(FileSystem):
    def __init__(self, writer: Writer):
        self._writer = writer

    @contextmanager
    def create_stream(self, path: Path, mode: str) -> Iterator:
        with self._writer.open(path) as stream:
            yield stream

    def mkdir(self, path: Path) -> None:
        self._writer.make_folder(path)

    def rename(self, path: Path, new_path: Path) -> None:
        self._writer.rename(path, new_path)


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in OF_INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an index, and code of a checkpoint is not run")
        return super().find_class(module, name)
