"""Templates, however they are cut; images that cannot be used are named."""

import shutil

import numpy as np
import pytest
import torch

from ffc_ds.encoders.net import NetEncoder
from ffc_ds.errors import UserError
from ffc_ds.evaluation import templates as module
from ffc_ds.evaluation.image_files import ImageFiles, images_below
from ffc_ds.evaluation.run import evaluate
from ffc_ds.evaluation.settings import parse_settings
from ffc_ds.evaluation.templates import Embedder, Templates
from ffc_ds.models.opening import load_model
from tests.protocol_data import person_folders, tiny_model
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return person_folders(tmp_path_factory.mktemp("faces"), people=5, images=5)


def test_templates_do_not_depend_on_batches_or_chunks(model_folder, faces, monkeypatch):
    images, group, weight = ImageFiles(images_below(faces), "faces"), np.arange(25) % 7, np.linspace(1, 2, 25)
    model, found = load_model(str(model_folder)), []
    for batch_size, chunk, starts in ((64, 1 << 14, [0]), (4, 10, [0, 10, 20])):
        monkeypatch.setattr(module, "CHUNK", chunk)
        embedder = Embedder(NetEncoder(model), batch_size)
        singles = embedder.templates(Templates.means(images, np.arange(25)))
        found.append((singles, embedder.templates(Templates(images, group, weight))))
        assert [start for start, _ in embedder.chunks(images)] == starts and singles.dtype == np.float32
    singles = found[0][0]
    expected = np.stack([(weight[group == g, None] * singles[group == g]).sum(0) for g in range(7)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for again, templates in found:
        np.testing.assert_allclose(again, singles, atol=1e-6)
        np.testing.assert_allclose(templates, expected, atol=1e-6)


def test_a_template_shows_the_image_that_weighs_most():
    templates = Templates(None, np.array([0, 1, 0, 1, 0]), np.array([0.5, 2, 1, 2, 0.7]))
    assert (templates.count, templates.first_image(0), templates.first_image(1)) == (2, 2, 1)


def refusal(line):
    with pytest.raises(UserError) as caught:
        evaluate(parse_settings(line))
    return caught.value.shared, str(caught.value)


def test_a_damaged_or_missing_file_is_named(model_folder, faces, tmp_path):
    copy = shutil.copytree(faces, tmp_path / "faces")
    embedder = Embedder(NetEncoder(load_model(str(model_folder))))
    images = ImageFiles(images_below(copy), "faces")
    damaged = copy / "Person_3" / "Person_3_0002.jpg"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(UserError, match=r"Person_3_0002.jpg: not a readable image of 50 bytes"):
        list(embedder.chunks(images))
    for number, existing in enumerate((faces, tmp_path / "out")):
        line = ["--model", str(model_folder), "--output_dir", str(existing)]
        line += ["--probes", str(faces), "--distractors", str(copy)]
        told = run_ranks(2, refusal, line)
        assert told[0] == told[1] and told[0][0]
        assert ("exists already", "Person_3_0002.jpg: not a readable")[number] in told[0][1]
    damaged.write_bytes((faces / "Person_3" / "Person_3_0002.jpg").read_bytes())
    bounded = Embedder(NetEncoder(load_model(str(model_folder))), max_megapixels=0.0001)
    with pytest.raises(
        UserError, match=r"Person_0_0001.jpg: its header announces \d+ x \d+ pixels, and max_megapixels"
    ):
        list(bounded.chunks(images))
    damaged.unlink()
    with pytest.raises(UserError, match=r"Person_3_0002.jpg cannot be read: No such file"):
        list(embedder.chunks(images))


def test_a_model_that_gives_no_numbers_is_refused(model_folder, faces):
    model = load_model(str(model_folder))
    model.fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="embeddings of faces are not finite"):
        list(Embedder(NetEncoder(model)).chunks(ImageFiles(images_below(faces), "faces")))
