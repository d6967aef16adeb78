"""Checkpoints with something in them that would leave a file if it were run."""

import os
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from ffc_ds.training.manifest import MANIFEST, Writer


class Planted:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def plant_in_index(step: Path, trace: Path) -> None:
    (step / "class" / ".metadata").write_bytes(pickle.dumps(Planted(trace)))


def plant_in_tensors(step: Path, trace: Path) -> None:
    """In the place of every tensor of the head."""
    path = step / "class" / ".metadata"
    index = pickle.loads(path.read_bytes())
    for key, entry in index.storage_data.items():
        if key.fqn.startswith("head."):
            with open(step / "class" / entry.relative_path, "ab") as file:
                entry.offset = file.tell()
                torch.save(Planted(trace), file)
                entry.length = file.tell() - entry.offset
    path.write_bytes(pickle.dumps(index))


def plant_as_bytes(step: Path, trace: Path) -> None:
    """The same, said to be an object, which torch.distributed.checkpoint would unpickle on its own."""
    plant_in_tensors(step, trace)
    path = step / "class" / ".metadata"
    index = pickle.loads(path.read_bytes())
    about, places = index.state_dict_metadata, index.storage_data
    index.storage_data = {MetadataIndex(key.fqn): entry for key, entry in places.items() if key.fqn in ours(about)}
    index.storage_data |= {key: entry for key, entry in places.items() if key.fqn not in ours(about)}
    index.state_dict_metadata = about | {name: BytesStorageMetadata() for name in ours(about)}
    path.write_bytes(pickle.dumps(index))


def ours(names) -> list[str]:
    return [name for name in names if name.startswith("head.")]


def seal(step: Path) -> None:
    """Make the manifest that goes with what is there, as a stranger would."""
    (step / MANIFEST).unlink()
    writer = Writer(step)
    for path in [path for path in sorted(step.rglob("*")) if path.is_file()]:
        content = path.read_bytes()
        with writer.open(path) as file:
            file.write(content)
    writer.seal(writer.files)
