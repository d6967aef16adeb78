"""Runs that start from weights: those of a run, of its checkpoint, of an export; what does not fit is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ffc_ds.config.settings import parse_config
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError
from ffc_ds.models import build_backbone
from ffc_ds.training.backbone_state import read_net
from ffc_ds.training.starting_weights import read_weights, start_from_weights
from tests.launched import TINY, losses, metrics, train, train_tiny
from tests.ranks import run_ranks

NET = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, batch_norm: true}"
TWO_STEPS = ("--train.steps", "2", "--model.overrides", NET)
ALONE = ("--train.head_only_steps", "2", "--train.steps", "3", "--train.checkpoint_every", "2")


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
        read = {"run": first / "model", "unfinished": source / "checkpoints" / "step-2"}.get(name, source)
        assert f"model.weights {read}: " in said and "of the backbone are taken" in said
        old, new = (read_net(run / "checkpoints" / "step-2") for run in (first, folder))
        for key, value in old.items():
            expected = value.bfloat16().float() if stage == "bf16" and "running" not in key else value
            assert torch.equal(new[key].float(), expected) or key.endswith("batches_tracked"), (name, key)
        assert losses(folder)[1] != losses(folder)[0]


def test_of_a_run_that_was_gone_on_with_the_newest_net_is_taken(first, tmp_path):
    run, results = shutil.copytree(first, tmp_path / "run"), json.loads((first / "results.json").read_text())
    assert read_weights(str(run))[0] == run / "model"
    shutil.copytree(run / "checkpoints" / "step-2", run / "checkpoints" / "step-3")
    assert read_weights(str(run))[0] == run / "checkpoints" / "step-3"
    (run / "results.json").write_text(json.dumps(results | {"steps": 3, "preempted": True}))
    assert read_weights(str(run))[0] == run / "checkpoints" / "step-3"
    (run / "results.json").write_text(json.dumps(results | {"steps": 3}))
    assert read_weights(str(run))[0] == run / "model"
    (run / "results.json").unlink()
    (run / "checkpoints" / "step-3" / "host.npz").unlink()
    assert read_weights(str(run))[0] == run / "checkpoints" / "step-2"


def unreadable_on_one_rank(folder):
    def is_file(path, own=Path.is_file):
        if rank() and path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied")
        return own(path)

    Path.is_file = is_file
    with pytest.raises(UserError, match="model.weights .* cannot be read: Permission denied") as caught:
        read_weights(str(folder))
    return caught.value.shared


def test_what_one_rank_may_not_read_is_told_by_all(first):
    assert run_ranks(2, unreadable_on_one_rank, first) == [True, True]


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
        (first, ("--train.head_only_steps", "2")): ["train.head_only_steps is 2, but the run has 2 steps"],
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
    _, found = read_weights(str(tmp_path / "backbone.pth"))
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match="nothing came from weights"):
        start_from_weights(parse_config(["--optim.backbone_lr_factor", "0.1"]), net, None)
    with pytest.raises(UserError, match="train.head_only_steps is nothing for head.name metric"):
        parse_config(["--head.name", "metric", *ALONE])
