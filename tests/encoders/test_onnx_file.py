"""ONNX files as models: what is put before them, and files that are refused."""

import pickle

import numpy as np
import pytest
import torch

from ffc_ds.encoders.onnx_input import OnnxInput
from ffc_ds.encoders.opening import open_encoder
from ffc_ds.errors import UserError

pytest.importorskip("onnx", reason="onnx is not installed: pip install ffc_ds[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install ffc_ds[export]")
from tests.encoders.onnx_nets import DIM, linear_net, matrix  # noqa: E402

CPU = torch.device("cpu")


def pixels(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("dims", "given", "swapped", "mean", "std"),
    [
        (("N", 3, 8, 8), {}, (0, 3, 1, 2), 127.5, 127.5),
        (("N", 8, 8, 3), {}, (0, 1, 2, 3), 127.5, 127.5),
        (("N", "c", 8, 8), {"layout": "nchw", "mean": 0.0, "std": 255.0}, (0, 3, 1, 2), 0, 255),
        ((2, 3, 8, 8), {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}, (0, 3, 1, 2), [1, 2, 3], [4, 5, 6]),
        ((1, 3, "h", "w"), {"size": 8, "channels": "bgr", "mean": [1.0, 2.0, 3.0]}, (0, 3, 1, 2), [1, 2, 3], 127.5),
    ],
)
@pytest.mark.parametrize("count", [1, 5])
def test_images_are_put_before_it_as_it_takes_them(tmp_path, dims, given, swapped, mean, std, count):
    encoder = open_encoder(str(linear_net(tmp_path / "net.onnx", dims, values=192)), OnnxInput(**given), CPU)
    assert (encoder.image_size, encoder.dim) == (8, DIM)
    images = pixels(count)
    found = encoder(torch.from_numpy(images))
    if "channels" in given:
        images = images[..., ::-1]
    fed = ((images - np.array(mean)) / np.array(std)).transpose(swapped).reshape(count, -1)
    np.testing.assert_allclose(found, fed @ matrix(192), rtol=1e-4, atol=1e-5 * np.abs(fed).max())


@pytest.mark.parametrize(
    ("net", "given", "reason"),
    [
        ({"outputs": 2}, {}, r"1 inputs and 2 outputs \(out0, out1\)"),
        ({"inputs": 2}, {}, "2 inputs and 1 outputs"),
        ({"dims": ("N", 192)}, {}, "images are four axes of float32"),
        ({"dims": ("N", 1, 8, 8)}, {}, "not images of three colours"),
        ({"dims": ("N", 3, 8, 8)}, {"layout": "nhwc"}, "not images of three colours, nhwc"),
        ({"dims": ("N", "c", 8, 8), "values": 192}, {}, "give --onnx.layout"),
        ({"dims": ("N", 3, "h", "w"), "values": 192}, {}, "give --onnx.size"),
        ({"dims": ("N", 3, "h", "w"), "values": 192}, {"size": 9}, "cannot be run on images of 9 pixels"),
        ({"dims": ("N", 3, 8, 8)}, {"size": 9}, "takes images of 8 x 8 pixels, and --onnx.size is 9"),
        ({"dims": ("N", 3, 8, 6)}, {}, "8 x 6 pixels, and images are square here"),
        ({}, {"mean": [1.0, 2.0]}, "onnx.mean is .* one number, or three"),
        ({}, {"std": 0.0}, "onnx.std is 0.0; it must be above 0"),
    ],
)
def test_what_cannot_be_fed_is_refused(tmp_path, net, given, reason):
    path = linear_net(tmp_path / "net.onnx", **net)
    with pytest.raises(UserError, match=reason):
        open_encoder(str(path), OnnxInput(**given), CPU)


class Armed:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_no_onnx_file_is_called_what_it_is_and_never_run(tmp_path):
    armed = pickle.dumps(Armed(tmp_path / "ran"))
    whole = linear_net(tmp_path / "net.onnx").read_bytes()
    contents = {
        "backbone.pth": (armed, "it is a pickle; .*from-insightface"),
        "named.onnx": (armed, "it is a pickle"),
        "page.onnx": (b"<!doctype html><p>not found", "it is a web page"),
        "empty.onnx": (b"", "it is empty"),
        "cut.onnx": (whole[: len(whole) // 2], "is no ONNX model|cannot be opened by onnxruntime"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*{reason}"):
            open_encoder(str(tmp_path / name), OnnxInput(), CPU)
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no backbone: config.json is missing"):
        open_encoder(str(tmp_path), OnnxInput(), CPU)
