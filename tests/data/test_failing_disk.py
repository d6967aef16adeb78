"""A disk that fails for a moment must not cost images for good. Reading /proc/self/mem from its start gives EIO."""

import errno
import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from ffc_ds.data.failing_disk import FailingDisk, is_failing
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.image_folder.walk import walk
from ffc_ds.data.importers import tar_files
from ffc_ds.data.importers.cleaned import read_rows
from ffc_ds.data.importers.image_check import damage
from ffc_ds.data.importers.imagefolder import plan_imagefolder
from ffc_ds.data.importers.inspection import opened_faces
from ffc_ds.data.importers.shards import write_shards
from ffc_ds.data.importers.webdataset import read_tar
from ffc_ds.data.reading import read_into
from ffc_ds.data.training_faces import TrainingFaces
from ffc_ds.embedding_set.readable import readable_batches
from ffc_ds.errors import UserError
from tests.data.importers.formats import pictures
from tests.protocol_data import person_folders

UNREADABLE = Path("/proc/self/mem")


@pytest.fixture
def folder(tmp_path):
    return person_folders(tmp_path / "faces", people=2, images=3)


def fail(folder):
    """The disk no longer hands out the fourth of six images. Returns its bytes."""
    image = sorted(folder.rglob("*.jpg"))[3]
    content = image.read_bytes()
    image.unlink()
    image.symlink_to(UNREADABLE)
    return image, content


def test_what_is_a_failure():
    with pytest.raises(OSError) as found:
        UNREADABLE.read_bytes()
    assert is_failing(found.value) and is_failing(OSError(errno.EMFILE, "too many open files"))
    for error in (FileNotFoundError(errno.ENOENT, "gone"), OSError("Invalid data stream"), ValueError("damaged")):
        assert not is_failing(error)


def test_an_import_stops_and_goes_on_when_the_disk_does(folder, tmp_path, capsys):
    plan = plan_imagefolder(str(folder), 2)
    image, content = fail(folder)
    with pytest.raises(UserError, match="stopped .*Input/output error.*the same command goes on"):
        write_shards(plan, str(tmp_path / "out"), workers=1)
    assert not (tmp_path / "out" / "broken.tsv").exists()
    image.unlink()
    image.write_bytes(content)
    write_shards(plan, str(tmp_path / "out"), workers=1)
    assert "6 images" in capsys.readouterr().out


def test_a_folder_is_not_searched_by_halves(folder):
    fail(folder)
    with pytest.raises(UserError, match="Person_1/Person_1_0001.jpg cannot be read now"):
        walk(folder)


def test_training_replaces_what_is_left_out_for_good_nowhere(folder):
    opened = str(folder), "train", "image", "label", str(datasets.config.HF_DATASETS_CACHE)
    faces = opened_faces(*opened)
    fail(folder)
    training, images = TrainingFaces(faces, IdentityIndex.build(faces.labels)), np.empty((2, 8, 8, 3), np.uint8)
    (said,) = read_into(images, training, np.array([2, 3]))
    assert "Input/output error" in said and "takes its place" in said
    image = faces.encoded(np.array([3]))[0]
    assert isinstance(image, FailingDisk)
    for leave_out in (
        lambda: damage(image, "header"),
        lambda: list(readable_batches(faces, [np.arange(6)], 8, 1, 64)),
        lambda: list(read_rows(opened, np.arange(6), np.arange(6), pa.array([*"abcdef"]))),
    ):
        with pytest.raises(FailingDisk, match="cannot be read.*Input/output error"):
            leave_out()


@pytest.mark.parametrize("ending", ["cls", "jpg"])
def test_a_tar_is_not_called_damaged(tmp_path, monkeypatch, ending):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.cls", b"7"), ("0.jpg", pictures(1)[0])):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole = tar_files.read
    assert [record.label for record in read_tar(tmp_path / "a.tar", "a.tar")] == [7]

    def failing(tar, file):
        return UNREADABLE.read_bytes() if file.ending == ending else whole(tar, file)

    monkeypatch.setattr(tar_files, "read", failing)
    with pytest.raises(OSError, match="Input/output error"):
        list(read_tar(tmp_path / "a.tar", "a.tar"))
