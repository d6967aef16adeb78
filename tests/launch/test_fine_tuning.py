"""Runs that start from weights: those of a run, of its checkpoint, of an export; what does not fit is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ffc_ds.config.settings import parse_config
from ffc_ds.errors import UserError
from ffc_ds.models import build_backbone
from ffc_ds.training.starting_weights import read_weights, start_from_weights
from tests.launched import TINY, losses, metrics, train, train_tiny

NET = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, batch_norm: true}"
TWO_STEPS = ("--train.steps", "2", "--model.overrides", NET)
ALONE = ("--train.head_only_steps", "2")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    train_tiny(2, folder, *TWO_STEPS)
    return folder


def weights_of(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_goes_on_where_another_one_ended_and_its_head_learns_alone_if_asked(first, tmp_path):
    sources = {
        "run": (first, "zero3"),
        "checkpoint": (first / "checkpoints" / "step-2", "bf16"),
        "unfinished": ("", "zero0"),
    }
    shutil.copytree(first / "checkpoints", tmp_path / "stopped" / "checkpoints")
    sources["unfinished"] = tmp_path / "stopped", "zero0"
    for name, (source, stage) in sources.items():
        folder = tmp_path / name
        settings = ("--model.weights", str(source), "--deepspeed", f"ds_configs/{stage}.json", "--seed", "1")
        head = ("--head.name", "full_fc", "--optim.backbone_lr_factor", "0.1")
        said = train_tiny(2, folder, *TWO_STEPS, *ALONE, *settings, *head).stdout
        assert "of the backbone are taken" in said
        old, new = weights_of(first), weights_of(folder)
        for key, value in old.items():
            expected = value.bfloat16().float() if stage == "bf16" and "running" not in key else value
            assert torch.equal(new[key].float(), expected) or key.endswith("batches_tracked"), (name, key)
        assert losses(folder)[1] != losses(folder)[0]


def test_a_resumed_run_needs_its_weights_no_more_and_keeps_their_pace(first, tmp_path):
    source = tmp_path / "weights"
    shutil.copytree(first / "model", source)
    settings = (*TWO_STEPS, "--model.weights", str(source), "--optim.backbone_lr_factor", "0.1", "--train.steps", "4")
    settings += (
        "--train.head_only_steps",
        "1",
        "--model.embedding_size",
        "24",
        "--model.weights_missing",
        "initialise",
    )
    settings += (
        "--train.checkpoint_every",
        "2",
        "--train.keep_checkpoints",
        "9",
        "--model.freeze",
        "[vit.embeddings.*]",
    )
    train_tiny(2, tmp_path / "whole", *settings)
    source.rename(tmp_path / "gone")
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-2", tmp_path / "cut" / "checkpoints" / "step-2")
    train_tiny(2, tmp_path / "cut", *settings, "--resume", "latest")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")[-3:]
    old, new, cut = weights_of(first), weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in new.items())
    assert torch.equal(new["vit.embeddings.cls_token"], old["vit.embeddings.cls_token"])
    assert not torch.equal(new["fc.weight"], old["fc.weight"])


def test_weights_that_cannot_be_used(first, tmp_path):
    build_backbone("iresnet18", 32, 16, width=1 / 16).save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(first / "checkpoints" / "step-2", damaged)
    with open(damaged / "backbone" / "part-1.safetensors", "r+b") as file:
        file.seek(900)
        file.write(b"\0\1\2\3")
    refusals = {
        (tmp_path / "other", ()): ["does not fit: 4 of the 24", "left over: bn1.bias"],
        (damaged, ()): ["part-1.safetensors is not what was written"],
        (first, ("--model.freeze", "[nothing.*]")): ["model.freeze", "nothing.*"],
    }
    for (source, more), mentions in refusals.items():
        arguments = ("--model.weights", str(source), "--output_dir", str(tmp_path / "run"))
        done = train(2, *TINY, *TWO_STEPS, *more, *arguments)
        assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr[-3000:]
        assert all(word in done.stderr for word in mentions), done.stderr
    with pytest.raises(UserError, match="empty holds no weights: .*backbone.pth"):
        read_weights(str(tmp_path / "empty"))
    net = build_backbone("iresnet18", 32, 16, width=1 / 16)
    torch.save({"module": net.state_dict()}, tmp_path / "backbone.pth")
    found = read_weights(str(tmp_path / "backbone.pth"))
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match="nothing came from weights"):
        start_from_weights(parse_config(["--optim.backbone_lr_factor", "0.1"]), net, None)
    with pytest.raises(UserError, match="train.head_only_steps is nothing for head.name metric"):
        parse_config(["--head.name", "metric", *ALONE])
