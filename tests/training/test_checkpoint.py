"""Class state that is saved by some ranks and taken over by others."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.distributed import Aside, rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads.full_fc import FullFC
from ffc_ds.heads.lru_pool import LRUPool
from ffc_ds.training import checkpoint, checkpoints
from ffc_ds.training.backbone_state import BackboneCopy
from ffc_ds.training.gallery import Gallery
from tests.ranks import run_ranks

CPU = torch.device("cpu")


class SilentEngine(SimpleNamespace):
    """Stands in for DeepSpeed's part, which the tests of whole runs cover."""

    def copy(self):
        return BackboneCopy({f"weight.{rank()}": torch.ones(250)}, {})

    def load(self, folder):
        pass


def save(target, *state, aside=None):
    """A checkpoint of step, engine, head and what is said of the run."""
    checkpoint.write(target, checkpoint.copy(*state), aside or Aside())


def parts(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    gallery = Gallery(net, net, nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), 0.9)
    head = LRUPool(HeadConfig(), 11, 4, CPU)
    return SilentEngine(gallery=gallery, followers=[gallery], zero_stage=0, device=CPU), head


def write(folder):
    engine, head = parts(seed=0)
    head.prefill(np.arange(100, 109), torch.from_numpy(np.random.default_rng(0).standard_normal((9, 4))).float())
    copy = checkpoint.copy(5, engine, head, {"identity": {"model": "a"}})
    before = deepcopy((head.storage.features, head.checksum(), engine.gallery.state()))
    head.prefill(np.arange(5), torch.ones(5, 4))  # training goes on
    for value in engine.gallery.state().values():
        value.zero_()
    checkpoint.write(folder / "step-5", copy, Aside())
    return before


def read(folder):
    engine, head = parts(seed=1 + rank())
    path = checkpoints.find("latest", folder)
    checkpoint.read_run(path, {"model": "a"})
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
    head = FullFC(config, ClassOptimConfig(), 7, 4, CPU, seed)
    return SilentEngine(gallery=None, followers=[], zero_stage=0, device=CPU), head


def write_class_weights(folder):
    engine, head = class_weights(seed=0)
    head.loss(torch.ones(2, 3, 4, requires_grad=True), np.arange(6 * world_size()).reshape(2, -1) % 7)
    head.step(applied=True, learning_rate=0.1)
    copy = checkpoint.copy(5, engine, head, {"identity": {}})
    before = deepcopy((head.weights, head.optimizer.state["velocity"], head.state.settled))
    for value in (head.weights, head.optimizer.state["velocity"], head.state.settled):
        value.zero_()  # training goes on
    checkpoint.write(folder / "step-5", copy, Aside())
    return before


def read_class_weights(folder):
    engine, head = class_weights(seed=1)
    checkpoint.load(checkpoints.find("latest", folder), engine, head)
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
        save(folder / f"step-{step}", step, engine, head, {"identity": {}})
    for name in (".step-200.unfinished", ".step-3.discarded"):
        (folder / name / "class").mkdir(parents=True)
    latest = checkpoints.find("latest", folder).name
    checkpoints.leave_behind(folder, 10)
    checkpoints.tidy(folder, keep=1)
    then = checkpoints.find("latest", folder).name
    return latest, then, sorted(path.name for path in folder.iterdir())


def killed_between_two_names(folder):
    write(folder)
    (folder / "step-5").rename(folder / ".step-5.unfinished")
    (folder / ".step-5.discarded").mkdir()
    (folder / ".step-7.unfinished").mkdir()
    found = checkpoints.find("auto", folder)
    checkpoints.tidy(folder, keep=1)
    return found.name, [path.name for path in folder.iterdir()]


def test_a_whole_checkpoint_that_had_not_got_its_name_gets_it(tmp_path):
    assert run_ranks(1, killed_between_two_names, tmp_path) == [("step-5", ["step-5"])]


def test_latest_is_the_newest_complete_one_and_what_is_too_much_goes(tmp_path):
    assert run_ranks(1, crowded, tmp_path) == [("step-100", "step-10", ["left-step-100", "step-10"])]


def refusals(folder):
    write(folder)
    path = folder / "step-5"
    with pytest.raises(UserError) as of_another:
        checkpoint.read_run(path, {"model": "b"})
    (path / "class" / "__0_0.distcp").unlink()
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, *parts(seed=0))
    return [str(of_another.value), str(caught.value)]


def test_what_does_not_fit_is_named(tmp_path):
    (messages,) = run_ranks(1, refusals, tmp_path)
    for message, mentions in zip(messages, (["model", "a", "b"], ["class"]), strict=True):
        assert all(word in message for word in mentions), message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON that can be used"),
        (b'{"step": 5', "is not JSON that can be used"),
        (b"\xff\xfe{", "is not UTF-8 text"),
        (b"[" * 9999, "nested too deeply"),
        (b"[]", "does not say what is in it"),
        (b'{"step": 5, "identity": [], "zero_stage": 0, "world_size": 1}', "does not say what is in it"),
        (b'{"step": "5", "identity": {}, "zero_stage": 0, "world_size": 1}', "does not say what is in it"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_run_json_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path} is no complete checkpoint: .*run.json.* {message}"):
        checkpoint.read_run(tmp_path, {})


def different_pools(folder):
    engine, head = parts(seed=0)
    head.prefill(np.arange(5) + rank(), torch.ones(5, 4))
    with pytest.raises(UserError, match="disagree about the class state: rank 1 against the others"):
        save(folder / "step-1", 1, engine, head, {"identity": {}})
    return list(folder.iterdir())


def test_ranks_that_disagree_write_nothing(tmp_path):
    assert run_ranks(2, different_pools, tmp_path) == [[], []]
