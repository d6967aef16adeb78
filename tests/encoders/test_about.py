"""What an encoder says that its embeddings depend on."""

import shutil

import pytest
import torch

from ffc_ds.data import content
from ffc_ds.encoders.onnx_input import OnnxInput
from ffc_ds.encoders.opening import open_encoder
from ffc_ds.models.opening import load_model
from tests.protocol_data import tiny_model

CPU = torch.device("cpu")


def test_any_weight_of_a_model_of_any_size_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SMALL", 0)  # as if it were too large to be read whole
    tiny_model(tmp_path / "model")
    told = [open_encoder(str(tmp_path / "model"), OnnxInput(), CPU).about for _ in range(2)]
    model = load_model(str(tmp_path / "model"))
    for number, weights in enumerate(model.parameters()):
        before = weights.data.view(-1)[0].item()
        weights.data.view(-1)[0] += 1
        model.save_pretrained(tmp_path / f"{number}")
        told.append(open_encoder(str(tmp_path / f"{number}"), OnnxInput(), CPU).about)
        weights.data.view(-1)[0] = before
    assert told[0] == told[1] and len({each["weights"] for each in told}) == len(told) - 1


@pytest.mark.parametrize("other", [{"channels": "bgr"}, {"mean": 1.0}, {"std": 2.0}, {"layout": "nhwc"}])
def test_how_an_onnx_file_is_fed_counts(tmp_path, other):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install ffc_ds[export]")
    from tests.encoders.onnx_nets import linear_net

    path, given = str(linear_net(tmp_path / "net.onnx", ("N", "a", "b", "c"), values=192)), {"layout": "nchw"}
    one, two = (open_encoder(path, OnnxInput(size=8, **each), CPU).about for each in (given, given | other))
    shutil.copy(path, tmp_path / "copy.onnx")
    assert open_encoder(str(tmp_path / "copy.onnx"), OnnxInput(size=8, **given), CPU).about == one
    assert one["size"] == two["size"] == 8 and one["weights"] == two["weights"] and one != two
