"""Class state that is saved by some ranks and taken over by others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.ffc import FFC
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.training import checkpoint
from ffc_ds.training.gallery import Gallery
from tests.ranks import run_ranks

CPU = torch.device("cpu")


class SilentEngine(SimpleNamespace):
    """Stands in for DeepSpeed's part, which the tests of whole runs cover."""

    def save(self, folder):
        (folder / "engine").mkdir(exist_ok=True)

    def load(self, folder):
        pass


def parts(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    gallery = Gallery(net, net, nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), 0.9)
    head = FFC(HeadConfig(), 11, 4, CPU)
    return SilentEngine(gallery=gallery, followers=[gallery], zero_stage=0, device=CPU), head


def write(folder):
    engine, head = parts(seed=0)
    head.prefill(np.arange(100, 109), torch.from_numpy(np.random.default_rng(0).standard_normal((9, 4))).float())
    checkpoint.save(folder, 5, engine, head, {"identity": {"model": "a"}}, keep=2)
    return head.storage.features, head.checksum(), engine.gallery.state()


def read(folder):
    engine, head = parts(seed=1 + rank())
    path = checkpoint.find("latest", folder)
    checkpoint.verify(path, {"model": "a"}, zero_stage=0)
    checkpoint.load(path, engine, head)
    return head.storage.features, head.checksum(), engine.gallery.state()


@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (3, 2), (2, 1)])
def test_pool_and_gallery_move_to_another_rank_count(tmp_path, writers, readers):
    written, found = run_ranks(writers, write, tmp_path), run_ranks(readers, read, tmp_path)
    pool = torch.cat([features for features, *_ in written], 1)
    assert torch.equal(torch.cat([features for features, *_ in found], 1), pool) and pool.abs().sum() > 0
    for _, checksum, gallery in found:
        assert checksum == written[0][1]
        for name, value in gallery.items():
            assert torch.equal(value, written[0][2][name]), name


def class_weights(seed):
    """Two weights a class, 7 classes: shards of uneven numbers of classes, none of which cuts a class in two."""
    config = HeadConfig("full_fc", margin="adaface", sub_centers=2)
    return SilentEngine(gallery=None, zero_stage=0, device=CPU), FullFC(config, ClassOptimConfig(), 7, 4, CPU, seed)


def write_class_weights(folder):
    engine, head = class_weights(seed=0)
    head.loss(torch.ones(2, 3, 4, requires_grad=True), np.arange(6 * world_size()).reshape(2, -1) % 7)
    head.step(applied=True, learning_rate=0.1)
    checkpoint.save(folder, 5, engine, head, {"identity": {}}, keep=2)
    return head.weights, head.optimizer.state["velocity"], head.state.settled


def read_class_weights(folder):
    engine, head = class_weights(seed=1)
    checkpoint.load(checkpoint.find("latest", folder), engine, head)
    return head.weights, head.optimizer.state["velocity"], head.state.settled


@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (3, 2)])
def test_sub_centers_and_the_state_of_a_margin_move_to_another_rank_count(tmp_path, writers, readers):
    written = run_ranks(writers, write_class_weights, tmp_path)
    found = run_ranks(readers, read_class_weights, tmp_path)
    for part in (0, 1):
        whole = torch.cat([each[part] for each in written])
        assert torch.equal(torch.cat([each[part] for each in found]), whole) and whole.any(1).all()
    for *_, state in found:
        assert torch.equal(state, written[0][2]) and state[0] != 20


def crowded(folder):
    engine, head = parts(seed=0)
    for step in (5, 10, 100):
        checkpoint.save(folder, step, engine, head, {"identity": {}}, keep=2)
    (folder / ".step-200.unfinished").mkdir()
    latest, there = checkpoint.find("latest", folder).name, sorted(path.name for path in folder.glob("step-*"))
    assert checkpoint.set_newer_aside(folder, 100) == []
    moved = [path.name for path in checkpoint.set_newer_aside(folder, 10)]
    return (
        latest,
        there,
        moved,
        checkpoint.find("latest", folder).name,
        (folder / "left-step-100" / "run.json").is_file(),
    )


def test_latest_is_the_newest_complete_one_and_old_ones_go(tmp_path):
    ((latest, there, moved, then, kept),) = run_ranks(1, crowded, tmp_path)
    assert latest == "step-100" and there == ["step-10", "step-100"]
    assert moved == ["left-step-100"] and then == "step-10" and kept


def refusals(folder):
    write(folder)
    path = folder / "step-5"
    messages = []
    for identity, stage in (({"model": "b"}, 0), ({"model": "a"}, 2)):
        with pytest.raises(UserError) as caught:
            checkpoint.verify(path, identity, stage)
        messages.append(str(caught.value))
    (path / "class" / "__0_0.distcp").unlink()
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, *parts(seed=0))
    return [*messages, str(caught.value)]


def test_what_does_not_fit_is_named(tmp_path):
    (messages,) = run_ranks(1, refusals, tmp_path)
    for message, mentions in zip(messages, (["model", "a", "b"], ["ZeRO 0", "ZeRO 2"], ["class"]), strict=True):
        assert all(word in message for word in mentions), message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON that can be used"),
        (b'{"step": 5', "is not JSON that can be used"),
        (b"\xff\xfe{", "is not UTF-8 text"),
        (b"[" * 9999, "nested too deeply"),
        (b"[]", "does not say what is in it"),
        (b'{"step": 5, "identity": {}, "files": [], "zero_stage": 0, "world_size": 1}', "does not say what is in it"),
        (b'{"step": "5", "identity": {}, "files": {}, "zero_stage": 0, "world_size": 1}', "does not say what is in it"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_run_json_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path} is no complete checkpoint: .*run.json.* {message}"):
        checkpoint.verify(tmp_path, {}, 0)


def different_pools(folder):
    engine, head = parts(seed=0)
    head.prefill(np.arange(5) + rank(), torch.ones(5, 4))
    with pytest.raises(RuntimeError, match="disagree about the class state"):
        checkpoint.save(folder, 1, engine, head, {"identity": {}}, keep=2)
    return list(folder.glob("step-*"))


def test_ranks_that_disagree_write_nothing(tmp_path):
    assert run_ranks(2, different_pools, tmp_path) == [[], []]
