"""Which people are trained on, and which are verified on."""

import datasets
import numpy as np
import pytest

from ffc_ds.config.settings import Config
from ffc_ds.errors import UserError
from ffc_ds.training.data import open_training_data


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    config = Config()
    config.data.train, config.eval.pairs = "generated:40:32", 20
    return config


def people(index):
    return set(index.names.tolist())


def test_people_of_another_split_are_verified_on(config):
    faces, index, pairs = open_training_data(config)
    assert index.identities == 40 and "'test'" in pairs.name and pairs.images is not faces.faces


def test_without_another_split_people_are_held_out(config):
    config.eval.split, config.data.min_images = config.data.split, 2
    faces, index, pairs = open_training_data(config)
    shown = faces.faces.labels[pairs.rows]
    assert "held out" in pairs.name and pairs.images is faces.faces
    assert (index.counts >= 2).all() and not people(index) & set(shown.tolist())
    again = open_training_data(config)[1]
    assert isinstance(again.images, np.memmap) and isinstance(index.images, np.memmap)
    np.testing.assert_array_equal(again.images, index.images)


def test_no_data_is_said(config):
    config.data.train = None
    with pytest.raises(UserError, match="give --data.train"):
        open_training_data(config)
