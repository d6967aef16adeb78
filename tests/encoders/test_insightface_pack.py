"""InsightFace's model packs: the file that recognises faces, and what it takes, are those that InsightFace finds."""

import numpy as np
import pytest
import torch

from ffc_ds.encoders.onnx_input import OnnxInput
from ffc_ds.encoders.opening import open_encoder
from ffc_ds.errors import UserError

pytest.importorskip("onnx", reason="onnx is not installed: pip install ffc_ds[export]")
zoo = pytest.importorskip("insightface.model_zoo", reason="the package insightface is not installed")
from tests.encoders.onnx_nets import linear_net  # noqa: E402

CPU = torch.device("cpu")
OTHERS = {
    "det_10g.onnx": {"outputs": 9, "dims": ("N", 3, 112, 112)},
    "1k3d68.onnx": {"dims": ("N", 3, 192, 192)},
    "genderage.onnx": {"dims": ("N", 3, 96, 96)},
}


@pytest.mark.parametrize(
    "names", [("Flatten", "MatMul"), ("_minusscalar0", "_mulscalar0"), ("Sub", "Mul"), ("Sub", "")]
)
def test_embeddings_are_those_of_insightface(tmp_path, names):
    for name, settings in OTHERS.items():
        linear_net(tmp_path / name, **settings)
    path = linear_net(tmp_path / "w600k.onnx", ("N", 3, 112, 112), names=names)
    encoder = open_encoder(str(tmp_path), OnnxInput(), CPU)
    theirs = zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    expected = theirs.get_feat([np.ascontiguousarray(image[..., ::-1]) for image in images])
    np.testing.assert_allclose(encoder(torch.from_numpy(images)), expected, atol=1e-4 * np.abs(expected).max())


def test_none_or_several_are_refused_by_name(tmp_path):
    for name, settings in OTHERS.items():
        linear_net(tmp_path / name, **settings)
    with pytest.raises(UserError, match=r"none of the ONNX files .* recognises faces \(1k3d68.onnx, det_10g.onnx"):
        open_encoder(str(tmp_path), OnnxInput(), CPU)
    for name in ("r50.onnx", "r100.onnx"):
        linear_net(tmp_path / name, ("N", 3, 112, 112))
    with pytest.raises(UserError, match=r"several .* recognise faces \(r100.onnx, r50.onnx\)"):
        open_encoder(str(tmp_path), OnnxInput(), CPU)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="says in manifest.json .* --onnx.mean and --onnx.std"):
        open_encoder(str(tmp_path), OnnxInput(), CPU)
