"""ONNX files: torch's embeddings at any batch size, InsightFace's ArcFaceONNX, and files that would be wrong."""

import os
import sys

import numpy as np
import pytest
import torch

from ffc_ds.errors import UserError
from ffc_ds.export.onnx import export_onnx
from tests.export.finished_run import SMALL, finished_run
from tests.hub_models import hub_model

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install ffc_ds[export]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install ffc_ds[export]")


@pytest.fixture(scope="module", params=SMALL)
def exported(request, tmp_path_factory):
    """A backbone for 112 x 112 pixels and its ONNX file."""
    folder = tmp_path_factory.mktemp(request.param)
    model = finished_run(folder / "run", request.param, 112)
    export_onnx(folder / "run", folder / "net.onnx")
    assert sorted(os.listdir(folder)) == ["net.onnx", "run"]
    return model, folder / "net.onnx"


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


@torch.no_grad()
def expected(model, rgb: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(rgb).permute(0, 3, 1, 2) / 127.5 - 1).embeddings.numpy()


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_embeddings_are_those_of_torch(exported, batch):
    model, path = exported
    rgb = pictures(batch)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixel_values": rgb.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1})
    np.testing.assert_allclose(found, expected(model, rgb), rtol=0, atol=1e-4 * np.abs(found).max())


def test_insightface_gives_the_same_embedding(exported):
    model, path = exported
    zoo = pytest.importorskip("insightface.model_zoo", reason="the package insightface is not installed")
    net = zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    assert type(net).__name__ == "ArcFaceONNX"
    rgb = pictures(5)
    found, truth = net.get_feat([np.ascontiguousarray(one[:, :, ::-1]) for one in rgb]), expected(model, rgb)
    cosine = (found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)
    assert cosine.min() > 1 - 1e-4
    assert np.abs(np.corrcoef(truth)[np.triu_indices(5, 1)]).max() < 0.999  # the pictures can be told apart


def test_a_file_that_is_not_the_net_is_not_kept(tmp_path, monkeypatch):
    finished_run(tmp_path / "run")
    export = torch.onnx.export

    def wrong(net, *args, **settings):
        weight = next(net.parameters())
        original = weight.detach().clone()
        weight.data.mul_(1.01)
        export(net, *args, **settings)
        weight.data.copy_(original)

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(UserError, match="of 1 images are off by"):
        export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["run"]


def test_a_net_that_gives_no_numbers_is_refused(tmp_path):
    model = finished_run(tmp_path / "run")
    model.fc.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(UserError, match="not finite"):
        export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["run"]


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    finished_run(tmp_path / "run")
    with pytest.raises(UserError, match="config.json is missing"):
        export_onnx(tmp_path / "nothing", tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(UserError, match="net.onnx exists already"):
        export_onnx(tmp_path / "run", tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript.*pip install ffc_ds\[export\]"):
        export_onnx(tmp_path / "run", tmp_path / "other.onnx")


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a ViTModel, which gives no face embeddings"):
        export_onnx(hub_model(tmp_path / "vit", "vit"), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["vit"]
