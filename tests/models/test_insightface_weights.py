"""Weights of InsightFace's iresnet: the same embeddings as the published architecture gives, and what does not fit."""

import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModel

from ffc_ds.errors import UserError
from ffc_ds.export.hub import import_insightface
from ffc_ds.models import build_backbone
from ffc_ds.models.insightface_weights import load_insightface_weights


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
    model = build_backbone(name, embedding_size=32)
    load_insightface_weights(model, tmp_path / "backbone.pth")
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    agree(model.eval()(x).embeddings, net(x))


@torch.no_grad()
def test_imported_folder_opens_with_automodel(tmp_path):
    net = reference()
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    import_insightface(tmp_path / "backbone.pth", tmp_path / "out", "iresnet18", embedding_size=32)
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    agree(AutoModel.from_pretrained(tmp_path / "out").eval()(x).embeddings, net(x))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("layer2.0.bn3.running_var"), r"missing: layer2\.0\.bn3\.running_var$"),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), r"unexpected: head\.weight$"),
        (lambda state: state.update({"fc.bias": torch.zeros(512)}), r"fc\.bias is \[512\] there, \[32\] here$"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path, spoil, message):
    state = reference().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "backbone.pth")
    model = build_backbone("iresnet18", embedding_size=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_insightface_weights(model, tmp_path / "backbone.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_depth_is_told_without_a_flood(tmp_path):
    torch.save(reference((2, 2, 2, 2)).state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"missing: layer1\.2\.bn1\.bias, .* and \d+ more$") as raised:
        import_insightface(tmp_path / "backbone.pth", tmp_path / "out", "iresnet34", embedding_size=32)
    assert len(str(raised.value)) < 500
    assert not (tmp_path / "out").exists()


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a foreign file was run')",))


@pytest.mark.parametrize("content", ["pickle", "module", "list", "cut", "text", "empty"])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path, state = tmp_path / "backbone.pth", {"conv1.weight": torch.ones(64, 3, 3, 3)}
    saved = {"pickle": {"conv1.weight": Hostile()}, "module": nn.Linear(2, 2), "list": [1, 2]}
    torch.save(saved.get(content, state), path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif content in ("text", "empty"):
        path.write_text("not weights" if content == "text" else "")
    with pytest.raises(UserError, match="backbone.pth is no"):
        load_insightface_weights(build_backbone("iresnet18", width=0.25), path)


def test_bare_pickles_are_refused(tmp_path):
    (tmp_path / "backbone.pth").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="backbone.pth is no"):
        load_insightface_weights(build_backbone("iresnet18", width=0.25), tmp_path / "backbone.pth")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="backbone.pth is no file of weights.*No such file"):
        import_insightface(tmp_path / "backbone.pth", tmp_path / "out")
