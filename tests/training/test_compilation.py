"""Compiled nets compute what they computed before. Compiling takes seconds a net, so the nets are the smallest."""

import copy

import torch
from torch import nn

from ffc_ds.models import build_backbone
from ffc_ds.models.output import FaceEmbedding
from ffc_ds.training.compilation import compile_nets, is_worth_compiling
from tests.launched import losses, metrics, train_tiny
from tests.warm import Call, environment, run_warm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, images):
        return FaceEmbedding(embeddings=self.dropout(self.norm(self.conv(images))).flatten(1))


def everything(probe, gallery, images):
    """What a step and a verification see of both nets."""
    torch.manual_seed(1)
    embeddings = probe(images).embeddings
    gradients = torch.autograd.grad(embeddings.pow(3).sum(), list(probe.parameters()))
    with torch.no_grad():
        of_gallery = gallery(images).embeddings
        verified = probe.eval()(images[:2]).embeddings
    probe.train()
    return [embeddings, *gradients, of_gallery, verified, *probe.buffers(), *gallery.buffers()]


def compiled_and_not():
    torch.manual_seed(0)
    plain = Net().double(), Net().double()
    compiled = copy.deepcopy(plain)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before, random_state = copy.deepcopy([net.state_dict() for net in compiled]), torch.get_rng_state()
    assert compile_nets(*compiled, compiled[0], torch.zeros_like(images), torch.zeros_like(images[:2]))
    torch.testing.assert_close([net.state_dict() for net in compiled], before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for net in compiled for parameter in net.parameters())
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counted >= 3
    torch.testing.assert_close(everything(*compiled, images), everything(*plain, images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted, (
        "compiled once more in the middle of a run"
    )


def test_compiled_nets_compute_the_same():
    [ended] = run_warm([Call(compiled_and_not, (), environment())])
    assert ended.code == 0, ended.stderr


def test_nets_that_cannot_be_compiled_stay_as_they_were(monkeypatch, capsys):
    def no_compiler(net, **_):
        def fail(*_):
            raise RuntimeError("no C++ compiler")

        net._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", no_compiler)
    net, images = Net(), torch.zeros(4, 3, 8, 8)
    before = copy.deepcopy(net.state_dict())
    assert not compile_nets(net, None, net, images, None)
    assert "cannot be compiled and runs as it is: no C++ compiler" in capsys.readouterr().out
    torch.testing.assert_close(net.state_dict(), before)
    assert net(images).embeddings.shape == (4, 144)


def test_only_a_long_run_is_worth_compiling():
    backbone, images = build_backbone("iresnet18", 16, width=0.05), torch.zeros(2, 3, 16, 16)
    assert not is_worth_compiling(backbone, images, micro_batches=1)
    assert is_worth_compiling(backbone, images, micro_batches=10**9)


def test_a_compiled_run_is_the_same_run_and_resumes_bit_for_bit(tmp_path):
    """Ranks that are killed after a checkpoint go on as if nothing had been, on the same graphs."""
    steps = "--train.steps", "4", "--train.checkpoint_every", "2", "--train.keep_checkpoints", "3"
    train_tiny(1, tmp_path / "eager", *steps, "--train.compile", "off")
    done = train_tiny(1, tmp_path / "whole", *steps, "--train.compile", "on")
    assert "compiled the net in" in done.stdout
    torch.testing.assert_close(losses(tmp_path / "whole"), losses(tmp_path / "eager"), rtol=1e-4, atol=1e-4)
    resumed = "--resume", str(tmp_path / "whole" / "checkpoints" / "step-2")
    done = train_tiny(1, tmp_path / "resumed", *steps, *resumed)
    assert "compiled the net in" in done.stdout, "auto goes on as the run began"
    assert metrics(tmp_path / "resumed")[-1] == metrics(tmp_path / "whole")[-1]
