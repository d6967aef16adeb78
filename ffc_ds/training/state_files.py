"""How DeepSpeed and torch.distributed.checkpoint get at files: through a `Writer`, and as data alone.

Both would unpickle what they find, which runs the code of whoever made it. Here only tensors, plain values and the few
classes below come out of a file.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from ffc_ds.errors import UserError
from ffc_ds.training.manifest import Writer

# What DeepSpeed's state holds besides tensors and plain values.
OF_DEEPSPEED = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
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


def read_data(path: Path, map_location=None, mmap: bool = False) -> Any:
    """What a file of torch.save holds. Raises UserError if that is more than data.

    mmap: read no tensor before it is looked at.
    """
    try:
        with torch.serialization.safe_globals(OF_DEEPSPEED):
            return torch.load(path, map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it holds more than data, and code of a checkpoint is not run.") from error


class EngineFiles(CheckpointEngine):
    """Takes the place of DeepSpeed's own reading and writing; `writer` is set for the time of a save."""

    writer: Writer

    def create(self, info) -> None:
        pass

    def commit(self, info) -> bool:
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.writer.make_folder(Path(path))

    def save(self, state_dict: dict, path: str) -> None:
        with self.writer.open(Path(path)) as file:
            torch.save(state_dict, file)

    def load(self, path: str, map_location=None) -> Any:
        return read_data(Path(path), map_location)


class ShardWriter(FileSystemWriter):
    """For torch.distributed.checkpoint.save."""

    def __init__(self, folder: Path, writer: Writer):
        super().__init__(folder, sync_files=False)  # the writer does
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
