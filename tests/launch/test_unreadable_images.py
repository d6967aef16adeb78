"""Image files that can no longer be read once training has begun, through `launch/train.py`."""

import errno
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ffc_ds import launching
from ffc_ds.data import faces as faces_module
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.opening import load_faces
from ffc_ds.data.reading import read_into
from ffc_ds.data.sampler import Sampler
from ffc_ds.data.training_faces import TrainingFaces, check_replaced
from ffc_ds.errors import UserError
from ffc_ds.training import trainer
from tests.launched import TINY, free_port, metrics
from tests.warm import Call, environment, run_script, run_warm

PEOPLE, EACH, BATCH = 20, 3, 96
SETTINGS = (
    *("--data.batch_size", str(BATCH), "--train.steps", "20", "--train.log_every", "2"),  # the third line is judged
    *("--eval.holdout", "0", "--head.prefill", "0", "--data.workers", "1"),
)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for person in range(PEOPLE):
        (tmp_path / "faces" / f"{person:02}").mkdir(parents=True)
        for i in range(EACH):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / f"{person:02}" / f"{i}.png")
    return tmp_path


def fail(paths):
    """Every other file is gone, the others have bytes that the disk cannot read."""
    for path in paths:
        path.unlink()
    for path in paths[1::2]:
        path.symlink_to("/proc/self/mem")  # whose first bytes nobody can read: EIO


def fail_after_opening(paths, *line):
    """`launch/train.py`, whose images `fail` when all ranks have opened them."""
    opened = trainer.open_training_data

    def open_training_data(config):
        found = opened(config)
        trainer.together(lambda: fail(paths) if trainer.rank() == 0 else None)
        return found

    trainer.open_training_data, launching.GRACE = open_training_data, 0
    run_script(*line)


def reason(path):
    """What is said of a file after `fail`."""
    return f"{path} cannot be read ({os.strerror(errno.EIO if path.is_symlink() else errno.ENOENT)})"


def test_they_are_replaced_named_and_counted_until_they_are_too_many(folder):
    index = IdentityIndex.build(load_faces(str(folder / "faces"), "train", "image", "label").labels)
    people = 3, 8, 11, 16
    paths = [folder / "faces" / f"{person:02}" / "1.png" for person in people]
    job = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    line = "launch/train.py", *TINY, *SETTINGS, "--data.train", str(folder / "faces"), "--output_dir", str(folder)
    ranks = [environment(RANK=rank, LOCAL_RANK=rank, **job) for rank in "01"]
    codes, *streams = zip(*run_warm([Call(fail_after_opening, (paths, *line), rank) for rank in ranks]), strict=True)
    stdout, stderr = map("".join, streams)
    assert codes == (2, 2) and "Traceback" not in stderr, stderr[-4000:]

    said = Counter(line for line in stdout.splitlines() if "takes its place" in line)
    assert max(said.values()) <= 2 and len(said) == len(paths)  # once for each rank
    for path, line in zip(paths, sorted(said, key=lambda line: line.split("(label ")[1]), strict=True):
        assert f"(label {path.parent.name})" in line and f": {reason(path)}; row " in line
    sampler, rows = Sampler(index, BATCH, "instance"), EACH * np.array(people) + 1
    shown = np.cumsum([np.isin(sampler.plan(step).images, rows).sum() for step in range(6)])
    assert [line["replaced_images"] for line in metrics(folder)] == shown[1::2].tolist()
    (message,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert f"{shown[-1]} of the 576 images seen so far" in message and "data.max_replaced 0.01 allows" in message


def test_a_share_is_judged_once_there_are_enough_images():
    check_replaced(499, 499, 0.01)
    check_replaced(5, 500, 0.01)
    check_replaced(500, 500, 1.0)
    with pytest.raises(UserError, match=r"6 of the 500 images seen so far \(1.20%\) could not be") as caught:
        check_replaced(6, 500, 0.01)
    assert caught.value.shared
    with pytest.raises(UserError, match=r"1 of the 10,000 images .* data.max_replaced 0 allows"):
        check_replaced(1, 10_000, 0.0)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOENT, errno.EACCES])
def test_whatever_the_system_says_another_image_takes_the_place(folder, number, monkeypatch):
    faces = load_faces(str(folder / "faces"), "train", "image", "label")
    training, known = TrainingFaces(faces, IdentityIndex.build(faces.labels)), faces_module.read_image_file

    def read_image_file(path):
        if path.endswith(("00/0.png", "00/1.png")):
            raise OSError(number, os.strerror(number), path)
        return known(path)

    monkeypatch.setattr(faces_module, "read_image_file", read_image_file)
    shown = np.empty((3, 32, 32, 3), np.uint8)
    said = read_into(shown, training, np.array([1, 2, 3]))
    assert np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])
    where = f"of split 'train' of {folder / 'faces'}"
    complaint = f"{folder}/faces/00/1.png cannot be read ({os.strerror(number)})"
    assert said == [f"row 1 (label 00) {where}: {complaint}; row 2 (label 00) {where} takes its place"]
