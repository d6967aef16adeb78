"""What a worker process costs: memory that stays flat."""

import gc
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pytest
import simplejpeg

from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import index_of
from ffc_ds.data.loader import make_loader
from ffc_ds.data.sampler import Sampler
from ffc_ds.data.training_faces import TrainingFaces

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def mapped_faces(folder, jpegs, chunks):
    """Training faces in a file that is mapped into memory; each chunk of it is an identity."""
    images = pa.array([{"bytes": jpeg, "path": None} for jpeg in jpegs], IMAGE)
    with (
        pa.OSFile(str(folder / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, pa.schema([("image", IMAGE), ("label", pa.int64())])) as writer,
    ):
        for chunk in range(chunks):
            labels = pa.array([chunk] * len(jpegs))
            writer.write_batch(pa.record_batch([images, labels], names=["image", "label"]))
    faces = Faces(datasets.Dataset.from_file(str(folder / "data.arrow")), "mapped", "image", "label", "mapped")
    return TrainingFaces(faces, index_of(faces, folder))


def started(before):
    """The one child of this process that was none of the children before."""
    (child,) = set(psutil.Process().children()) - set(before)
    return child


def memory(process):
    """Bytes that are resident, and those of them that no other process or file shares."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split()[0]: int(line.split()[1]) for line in lines}
    return np.array([kib["Rss:"], kib["Private_Dirty:"]]) * 1024


@pytest.fixture
def frozen():
    """What other tests left behind is no longer looked at by garbage collection, which in a worker would copy it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux says what memory is shared")
def test_memory_stays_flat_over_a_long_run(tmp_path, frozen):
    jpeg = simplejpeg.encode_jpeg(np.full((16, 16, 3), 90, np.uint8))
    faces = mapped_faces(tmp_path, [jpeg] * 100, chunks=400)
    sampler = Sampler(faces.index, 16)
    this, used = psutil.Process(), []
    others = this.children()
    for step, _ in enumerate(make_loader(faces, sampler, 16, 0, 1, 1, 0, 4001, workers=1)):
        if step % 2000 == 0 and step:
            worker = started(others)
            used.append((memory(worker), memory(this), this.num_fds(), worker.num_fds()))
    for before, after in zip(*used, strict=True):
        assert np.all(after - before < 2**21 if np.ndim(after) else after <= before + 2)
