"""Parquet files whose copy in the cache is cut off, before it is opened and while workers read it."""

import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.loader import make_loader
from ffc_ds.data.opening import load_faces
from ffc_ds.data.sampler import Sampler
from ffc_ds.data.training_faces import TrainingFaces
from ffc_ds.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "faces").mkdir()
    random = np.random.default_rng(0)
    images = [{"bytes": random.bytes(5000), "path": None} for _ in range(80)]
    table = pa.table({"image": images, "label": np.arange(80) // 2})
    pq.write_table(table, tmp_path / "faces" / "train-00000-of-00001.parquet")
    return tmp_path


def cut(folder):
    (copy,) = (folder / "cache").rglob("*.arrow")
    os.truncate(copy, copy.stat().st_size // 4)
    return copy


def test_before_it_is_opened(folder):
    assert len(load_faces(str(folder / "faces"), "train", "image", "label")) == 80
    copy = cut(folder)
    with pytest.raises(UserError, match=rf"the copy of {folder}/faces/train-\S+ in the cache .*: delete {copy}, and"):
        load_faces(str(folder / "faces"), "train", "image", "label")
    copy.unlink()
    assert len(load_faces(str(folder / "faces"), "train", "image", "label")) == 80


def test_while_workers_read_it(folder, monkeypatch):
    seen_soon = (0.2,)  # seconds
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", seen_soon)
    faces = load_faces(str(folder / "faces"), "train", "image", "label")
    index = IdentityIndex.build(faces.labels)
    copy = cut(folder)
    with pytest.raises(UserError, match=rf"the copy of split 'train' of {folder}/faces .*: delete {copy}, and"):
        list(make_loader(TrainingFaces(faces, index), Sampler(index, 24), 16, 0, 1, 1, 0, 5, 1))
