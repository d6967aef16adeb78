"""Which people are trained on, and which are verified on."""

import io
import itertools

import datasets
import numpy as np
import pytest
from PIL import Image

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
    return set(index.names.to_pylist())


def test_people_of_another_split_are_verified_on(config):
    faces, index, pairs = open_training_data(config)
    assert index.identities == 40 and "'test'" in pairs.name and pairs.images is not faces.faces


def test_without_another_split_people_are_held_out(config):
    config.eval.split, config.data.min_images = config.data.split, 2
    faces, index, pairs = open_training_data(config)
    shown = {faces.faces.label(row) for row in pairs.rows}
    assert "held out" in pairs.name and pairs.images is faces.faces
    assert (index.counts >= 2).all() and not people(index) & shown
    again = open_training_data(config)[1]
    assert isinstance(again.images, np.memmap) and isinstance(index.images, np.memmap)
    np.testing.assert_array_equal(again.images, index.images)


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def own(config, tmp_path):
    """A function that makes a set of splits {name: labels}, which the settings train on; all images are different."""

    def make(**splits):
        (tmp_path / "own").mkdir()
        count = itertools.count()
        for split, labels in splits.items():
            kind = datasets.Value("string" if isinstance(labels[0], str) else "int64")
            features = datasets.Features(image=datasets.Image(), label=kind)
            columns = {"image": [{"bytes": png(next(count)), "path": None} for _ in labels], "label": labels}
            datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "own" / f"{split}.parquet")
        config.data.train = str(tmp_path / "own")
        return config

    return make


PEOPLE = [f"p{i // 3}" for i in range(60)]


@pytest.mark.parametrize("test", [[-1] * 6, [None] * 6, list(range(20))], ids=["-1", "null", "one image a person"])
def test_a_split_that_cannot_serve_does_not_stop_training(own, test, capsys):
    config = own(train=[i // 3 for i in range(60)], test=test)
    _, index, pairs = open_training_data(config)
    assert index.identities == 18 and "held out" in pairs.name
    assert "split 'test' cannot serve for verification (" in capsys.readouterr().out
    config.eval.split = "test"  # asked for by name, it must serve
    with pytest.raises(UserError, match="eval.split test cannot serve for verification: "):
        open_training_data(config)


def test_people_with_one_image_each_can_be_trained_on(own, capsys):
    config = own(train=[f"p{i}" for i in range(30)])
    with pytest.raises(UserError, match=r"--eval.bin, --eval.split\), or on nothing \(--eval.holdout 0\)"):
        open_training_data(config)
    config.eval.holdout = 0
    _, index, pairs = open_training_data(config)
    assert index.identities == 30 and pairs is None and "nothing is verified" in capsys.readouterr().out


def test_people_of_both_splits_are_reported(own, capsys):
    config = own(train=PEOPLE, test=["p1", "p1", "p2", "p2", "new", "new", "other", "other"])
    pairs = open_training_data(config)[2]
    assert "2 of 4 people are trained on under the same name" in pairs.name
    assert f"WARNING: split 'test' of {config.data.train}: 2 of 4 people" in capsys.readouterr().out
    config.data.train = [config.data.train]  # one of several sets
    assert "2 of 4 people" in open_training_data(config)[2].name


def test_numbers_in_two_splits_are_no_names_but_images_tell(own, tmp_path):
    config = own(train=[i // 3 for i in range(60)], test=[0, 0, 1, 1, 2, 2])
    assert open_training_data(config)[2].name.endswith("own")
    test = datasets.Dataset.from_parquet(str(tmp_path / "own" / "test.parquet"))
    copied = {"image": [{"bytes": png(i), "path": None} for i in (3, 500, 501, 502, 4, 5)], "label": test["label"][:]}
    datasets.Dataset.from_dict(copied, test.features).to_parquet(tmp_path / "own" / "test.parquet")
    assert "3 of 6 images are, byte for byte, training images" in open_training_data(config)[2].name


def test_no_data_is_said(config):
    config.data.train = None
    with pytest.raises(UserError, match="give --data.train"):
        open_training_data(config)
