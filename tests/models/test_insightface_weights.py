"""Weights of InsightFace's iresnet: the same embeddings as the published architecture gives, and what does not fit."""

import gzip
import io
import math
import os
import pickle
import random
import struct
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import AutoModel

from ffc_ds.errors import UserError
from ffc_ds.export.hub import import_insightface
from ffc_ds.models import build_backbone
from ffc_ds.models.insightface_weights import iresnet_name, load_insightface


class Block(nn.Module):
    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes, eps=1e-05)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes, eps=1e-05)
        self.prelu = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes, eps=1e-05)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes, eps=1e-05)
            )

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class Reference(nn.Module):
    """The architecture as arcface_torch publishes it, for 112 x 112 pixels."""

    def __init__(self, blocks, embedding_size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=1e-05)
        self.prelu = nn.PReLU(64)
        inplanes = 64
        for number, (planes, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
            layers = [Block(inplanes if i == 0 else planes, planes, 2 if i == 0 else 1) for i in range(count)]
            self.add_module(f"layer{number}", nn.Sequential(*layers))
            inplanes = planes
        self.bn2 = nn.BatchNorm2d(512, eps=1e-05)
        self.fc = nn.Linear(512 * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, eps=1e-05)
        self.features.weight.requires_grad = False

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.features(self.fc(torch.flatten(x, 1)))


def reference(blocks=(2, 2, 2, 2), embedding_size=32):
    """Random weights and statistics, such that activations stay of order 1."""
    torch.manual_seed(0)
    net = Reference(blocks, embedding_size)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
                module.bias.normal_(0, 0.3)
                if module is not net.features:
                    module.weight.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(1000)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(0, 0.5)
    return net.eval()


def agree(found, expected):
    """To 1e-5 of the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "blocks"), [("iresnet18", (2, 2, 2, 2)), ("iresnet50", (3, 4, 14, 3))])
@torch.no_grad()
def test_embeddings_are_those_of_the_published_architecture(tmp_path, name, blocks):
    net = reference(blocks)
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    model, prefix = load_insightface(tmp_path / "backbone.pth")
    assert (iresnet_name(model), prefix, model.config.image_size) == (name, "", 112)
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    agree(model(x).embeddings, net(x))


@torch.no_grad()
def test_imported_folder_opens_with_automodel(tmp_path, capsys):
    net = reference()
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    import_insightface(tmp_path / "backbone.pth", tmp_path / "out")
    assert "backbone.pth: iresnet18, embeddings of 32 numbers\n" in capsys.readouterr().out
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    agree(AutoModel.from_pretrained(tmp_path / "out").eval()(x).embeddings, net(x))


@pytest.fixture(scope="module")
def small():
    """A net as narrow as there is none published, which is read faster; its blocks, and weights of every shape."""
    torch.manual_seed(0)
    model = build_backbone("iresnet18", image_size=32, embedding_size=8, width=1 / 16, depth=[1, 2, 3, 1])
    state = {name: torch.rand_like(value.float()).to(value.dtype) for name, value in model.state_dict().items()}
    return state | {"features.weight": torch.ones(8)}


def loaded(path, **settings):
    model, prefix = load_insightface(path, **settings)
    return model.state_dict(), prefix


def same(found, expected, tolerance=0):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=0, msg=name)


def renamed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def arcface_checkpoint(state):
    """As arcface_torch's train_v2.py writes checkpoint_gpu_0.pt."""
    weight = torch.nn.Parameter(torch.rand(20, 8))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "global_step": 4242,
        "state_dict_backbone": OrderedDict(state),
        "state_dict_softmax_fc": {"weight": weight.detach()},
        "state_optimizer": optimizer.state_dict(),
        "state_lr_scheduler": torch.optim.lr_scheduler.PolynomialLR(optimizer, 10).state_dict(),
    }


WRAPPED = {
    **{f"{prefix}*": (lambda state, prefix=prefix: renamed(state, prefix), prefix) for prefix in (
        "module.", "_orig_mod.", "backbone.", "model.", "net.", "module._orig_mod.", "model.backbone.module.",
        "features.",
    )},
    **{key: (lambda state, key=key: {key: state, "epoch": 3}, f"{key}.") for key in (
        "state_dict", "model", "net", "backbone", "model_state_dict", "state_dict_backbone"
    )},
    "arcface_torch's checkpoint": (arcface_checkpoint, "state_dict_backbone."),
    "MagFace's checkpoint": (
        lambda state: {
            "epoch": 25,
            "arch": "iresnet100",
            "state_dict": renamed(state, "features.module.") | {"fc.weight": torch.rand(8, 30)},
            "optimizer": {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "state_dict.features.module.",
    ),
    "things of other classes": (
        lambda state: {"model": state, "args": Namespace(lr=0.1), "best": np.float64(0.5), "where": Path("a")},
        "model.",
    ),
    "a list": (lambda state: [state, 7], "0."),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_the_net_is_found_wherever_it_is(tmp_path, small, kind, legacy):
    wrap, prefix = WRAPPED[kind]
    torch.save(wrap(small), tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=not legacy)
    state, found = loaded(tmp_path / "checkpoint.pt")
    assert found == prefix
    same(state, small)


def test_a_net_that_was_saved_as_a_whole(tmp_path, monkeypatch):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Reference((2, 2, 2, 2), 32)

    theirs = ModuleType("theirs")
    theirs.Wrapper, Wrapper.__module__, Wrapper.__qualname__ = Wrapper, "theirs", "Wrapper"
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    wrapper = Wrapper()
    torch.save(wrapper, tmp_path / "net.pt")
    monkeypatch.undo()  # its code is not here any more
    state, prefix = loaded(tmp_path / "net.pt")
    assert prefix == "backbone."
    same(state, wrapper.backbone.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_no_counts_of_batches(tmp_path, small, dtype):
    state = {name: value.to(dtype) for name, value in small.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "backbone.pth")
    found, _ = loaded(tmp_path / "backbone.pth")
    counts = {name: value for name, value in found.items() if name.endswith("num_batches_tracked")}
    assert all(value.dtype == torch.float32 for name, value in found.items() if name not in counts)
    same(found, {name: value.float() for name, value in state.items()} | counts)


def test_safetensors_whatever_they_are_called(tmp_path, small):
    for name in ("model.safetensors", "backbone.pth"):
        safetensors.torch.save_file(renamed(small, "module."), tmp_path / name)
        same(loaded(tmp_path / name)[0], small)


def test_one_of_several_nets(tmp_path, small):
    average = {name: value / 2 if value.is_floating_point() else value for name, value in small.items()}
    torch.save({"state_dict": small, "ema": renamed(average, "module.")}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"two.pth holds the nets 'state_dict.', 'ema.module.': choose one with --net"):
        load_insightface(tmp_path / "two.pth")
    same(loaded(tmp_path / "two.pth", net="ema.module.")[0], average)
    torch.save(small | renamed(average, "teacher."), tmp_path / "two.pth")
    same(loaded(tmp_path / "two.pth", net="teacher.")[0], average)
    same(loaded(tmp_path / "two.pth", net="")[0], small)
    with pytest.raises(UserError, match="holds the nets '', 'teacher.': choose"):
        import_insightface(tmp_path / "two.pth", tmp_path / "out", net="student.")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("layer2.0.bn3.running_var"), r"missing: layer2\.0\.bn3\.running_var$"),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), r"unexpected: head\.weight$"),
        (lambda state: state.update({"fc.bias": torch.zeros(9)}), r"fc\.bias is \[9\] there, \[8\] in such a net$"),
        (lambda state: state["layer1.0.bn1.weight"].fill_(math.nan), r"not finite: layer1\.0\.bn1\.weight$"),
        (lambda state: state.update({"fc.bias": torch.zeros(8, dtype=torch.int8)}), r"fc\.bias holds torch\.int8$"),
        (lambda state: state.pop("fc.weight"), "missing: fc.weight"),
        (lambda state: state.pop("layer4.0.bn1.weight"), "missing: layer4.0.bn1.weight"),
        (lambda state: state.update({"layer1.0.se.fc1.weight": torch.zeros(1)}), "unexpected: layer1.0.se.fc1.weight"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path, small, spoil, message):
    state = {name: value.clone() for name, value in small.items()}
    spoil(state)
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=message) as raised:
        import_insightface(tmp_path / "backbone.pth", tmp_path / "out")
    assert "is no iresnet with stages of [1, 2, 3, 1] blocks of InsightFace" in str(raised.value)
    assert len(str(raised.value)) < 600 and not (tmp_path / "out").exists()


def test_another_architecture_is_told_without_a_flood(tmp_path):
    state = {f"body.{i}.res_layer.0.weight": torch.zeros(1) for i in range(24)}
    torch.save(state, tmp_path / "ir50.pth")
    told = (
        r"ir50.pth is no iresnet of InsightFace: none of its 24 tensors is called layer1\.0\.conv1\.weight\n.* 19 more$"
    )
    with pytest.raises(UserError, match=told):
        load_insightface(tmp_path / "ir50.pth")


def test_a_name_and_a_size_are_compared_if_they_are_given(tmp_path):
    torch.save(reference().state_dict(), tmp_path / "backbone.pth")
    for settings, told in (
        ({"name": "iresnet100"}, "holds an iresnet18, not an iresnet100: leave --name out"),
        ({"embedding_size": 512}, "makes embeddings of 32 numbers, not 512: leave --embedding-size out"),
    ):
        with pytest.raises(UserError, match=told):
            import_insightface(tmp_path / "backbone.pth", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    import_insightface(tmp_path / "backbone.pth", tmp_path / "out", "iresnet18", 32)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a foreign file was run')",))


class Shell:
    def __reduce__(self):
        return (os.system, ("touch code-was-run",))


def saved(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


def zipped(**files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def onnx_model() -> bytes:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", ends[:1], ends[1:]), producer_name="pytorch")
    return model.SerializeToString()


WEIGHTS = {"conv1.weight": torch.ones(64, 3, 3, 3)}
NO_WEIGHTS = {
    "a list": (lambda: saved([1, 2]), "it holds no tensors by name"),
    "code": (
        lambda: saved(WEIGHTS | {"hook": Hostile()}),
        r"it asks for code to be run \(__builtin__\.exec\), which is",
    ),
    "a command": (lambda: saved(WEIGHTS | {"hook": Shell()}), r"it asks for code to be run \(posix\.system\)"),
    "a bare pickle": (lambda: pickle.dumps(Hostile()), "it is a pickle that torch.save did not write"),
    "a pickled dict": (lambda: pickle.dumps({"a": 1}, protocol=2), "it is a pickle that torch.save did not write"),
    "cut": (lambda: saved(WEIGHTS)[:-200], "it is cut or damaged: get it again"),
    "cut safetensors": (lambda: safetensors.torch.save(WEIGHTS)[:-9], "it is cut or damaged: get it again"),
    "a text": (lambda: b"not weights", "it is a text"),
    "empty": (lambda: b"", "it is empty"),
    "zeros": (lambda: bytes(10**4), "it is all zeros"),
    "ONNX": (onnx_model, "it is an ONNX model"),
    "TorchScript": (script, "it is a TorchScript archive, which holds code: save the net's state_dict"),
    "LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html>Quota exceeded</html>", "it is a web page"),
    "another zip": (lambda: zipped(a="1", b="2"), r"it is a zip archive of other files \(a, b\)"),
    "npz": (lambda: zipped(**{"conv1.weight.npy": "1"}), r"it is a zip archive of other files \(conv1\.weight\.npy\)"),
    "gzip": (lambda: gzip.compress(saved(WEIGHTS)), "it is packed by gzip"),
    "MXNet": (lambda: struct.pack("<QQ", 0x112, 0) + bytes(90), "it is a file of MXNet's parameters"),
    "Keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), "it is an HDF5 file"),
    "unknown": (lambda: bytes(range(256)), "it is of an unknown kind"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_weights_is_called_what_it_is(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, told = NO_WEIGHTS[kind]
    (tmp_path / "backbone.pth").write_bytes(make())
    with pytest.raises(UserError, match=f"backbone.pth is no file of weights: {told}") as raised:
        import_insightface(tmp_path / "backbone.pth", tmp_path / "out")
    assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == ["backbone.pth"]


def test_a_damaged_file_is_told_or_read(tmp_path, small):
    rng = random.Random(0)
    for legacy in (True, False):
        file = io.BytesIO()
        torch.save(small, file, _use_new_zipfile_serialization=not legacy)
        for _ in range(60):
            content = bytearray(file.getvalue())
            start = rng.randrange(3000) if rng.random() < 0.8 else rng.randrange(len(content))
            content[start : start + 8] = rng.randbytes(8)
            (tmp_path / "backbone.pth").write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
            try:
                load_insightface(tmp_path / "backbone.pth")
            except UserError as error:
                assert "weights_only" not in str(error)


def test_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="backbone.pth is no file of weights: No such file"):
        import_insightface(tmp_path / "backbone.pth", tmp_path / "out")
    with pytest.raises(UserError, match="is no file of weights: Is a directory"):
        import_insightface(tmp_path, tmp_path / "out")
