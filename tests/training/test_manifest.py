"""Damages to every file of a checkpoint that two ranks have written are found, and what they planted is not run."""

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from ffc_ds.distributed import Aside, rank
from ffc_ds.errors import UserError
from ffc_ds.training import checkpoint, checkpoints, manifest
from ffc_ds.training.manifest import MANIFEST, find_damage
from ffc_ds.training.state_files import ShardReader
from tests.launched import train_tiny
from tests.ranks import run_ranks
from tests.training.test_checkpoint import parts, save
from tests.untrusted import Planted, plant_in_index, plant_in_tensors, seal

BLOCK = 512


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train_tiny(2, folder, "--head.pool", "lru", "--train.steps", "1", "--deepspeed", "ds_configs/zero2.json")
    return folder / "checkpoints" / "step-1"


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


def zeroed(content):
    blocks = [at for at in range(0, len(content), BLOCK) if any(content[at : at + BLOCK])]
    at = blocks[len(blocks) // 2]
    return content[:at] + bytes(len(content[at : at + BLOCK])) + content[at + BLOCK :]


DAMAGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "first bit": lambda content: flipped(content, 0),
    "a bit in the middle": lambda content: flipped(content, len(content) // 2),
    "last bit": lambda content: flipped(content, len(content) - 1),
    "a block of zeros": zeroed,
    "zeros": lambda content: bytes(len(content)),
}


def test_every_damage_to_every_file_is_found_and_named(whole):
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(whole)) for path in files}
    assert {"backbone/part-1.safetensors", "class/.metadata", "class/__1_0.distcp", MANIFEST} < names
    assert not any(name.endswith(".py") for name in names)
    assert find_damage(whole) is None
    for path in files:
        content, name = path.read_bytes(), path.relative_to(whole)
        for damage, change in DAMAGES.items():
            path.unlink(missing_ok=True)
            if (changed := change(content)) is not None:
                path.write_bytes(changed)
            assert str(name) in (find_damage(whole) or ""), f"{name}: {damage}"
        path.write_bytes(content)
    assert find_damage(whole) is None


def test_a_file_that_cannot_be_read_is_damage(whole, monkeypatch):
    def failing(path, mode, **options):
        if Path(path).name == "host.npz":
            raise OSError(errno.EIO, "Input/output error")
        return open(path, mode, **options)

    monkeypatch.setattr(manifest, "open", failing, raising=False)
    assert "host.npz cannot be read: Input/output error" in find_damage(whole)

    def lost(path, **options):
        if path.name == "run.json":
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lost)
    assert "run.json cannot be read: Stale file handle" in find_damage(whole)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}}', b"[" * 9999, b"\xff"])
def test_a_manifest_of_another_form(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    assert find_damage(tmp_path) == f"{tmp_path} is damaged: {MANIFEST} is not what was written."


def test_ranks_read_about_as_much_each(monkeypatch):
    sizes, shares = {"a": 50, "b": 30, "c": 30, "d": 20, "e": 1}, []
    monkeypatch.setattr(manifest, "world_size", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(manifest, "rank", lambda number=number: number)
        shares.append(manifest._share(sizes))
    assert sorted(sum(shares, [])) == sorted(sizes)
    assert max(sum(sizes[name] for name in share) for share in shares) <= 51


def limited(folder):
    """Rank 1 may write no file of more than 500 bytes: all ranks hear of it, and nothing is left; then it may."""
    aside, (engine, head) = Aside(), parts(seed=0)
    if rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    with pytest.raises(UserError) as caught:
        save(folder / "step-1", 1, engine, head, {"identity": {}}, aside=aside)
    left = list(folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(folder / "step-1", 1, engine, head, {"identity": {}}, aside=aside)
    return str(caught.value), left, find_damage(folder / "step-1")


def test_a_rank_that_cannot_write(tmp_path):
    message = f"{tmp_path}/step-1 could not be saved: the disk: File too large."
    assert run_ranks(2, limited, tmp_path) == [(message, [], None)] * 2


def too_full(folder):
    engine, head = parts(seed=0)
    messages = []
    for size in (0, 1 << 60):
        checkpoint.Copy.bytes = size
        with pytest.raises(UserError) as caught:
            save(folder / "step-1", 1, engine, head, {"identity": {}})
        messages.append(str(caught.value))
    return messages, [path.name for path in folder.iterdir()]


def saved_again(folder):
    """The disk is full when the new one is to get its name, or already for its manifest."""
    engine, head = parts(seed=0)
    save(folder / "step-1", 1, engine, head, {"identity": {}})
    before = {path.name: path.read_bytes() for path in (folder / "step-1").iterdir() if path.is_file()}

    kept, rename = [], Path.rename

    def full(path, *_):
        if isinstance(path, Path) and path.suffix != ".unfinished":
            return rename(path, *_)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, name in ((manifest, "_sync_all"), (Path, "rename")):
        whole = getattr(place, name)
        setattr(place, name, full)
        with pytest.raises(UserError, match="could not be saved: disk full"):
            save(folder / "step-1", 1, engine, head, {"identity": {"other": 1}})
        setattr(place, name, whole)
        after = {path.name: path.read_bytes() for path in (folder / "step-1").iterdir() if path.is_file()}
        kept.append(after == before and find_damage(folder / "step-1") is None)
    return kept


def test_a_checkpoint_of_the_same_step_stays_until_the_new_one_has_its_name(tmp_path):
    assert run_ranks(1, saved_again, tmp_path) == [[True, True]]


def test_a_full_disk(tmp_path):
    if os.system(f"mount -t tmpfs -o size=64k tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        (tmp_path / "ballast").write_bytes(bytes(50_000))
        (((written, asked), left),) = run_ranks(1, too_full, tmp_path)
    finally:
        os.system(f"umount {tmp_path}")
    assert f"{tmp_path}/step-1 could not be saved: disk full: No space left on device." == written
    assert "disk full: 1.15e+09 GB are needed and" in asked and left == ["ballast"]


def test_nothing_planted_is_run(whole, tmp_path):
    trace = tmp_path / "trace"
    step = shutil.copytree(whole, tmp_path / "step-1")
    state = {"head.pool": torch.empty(3, 25, 16)}
    planted = {plant_in_tensors: "Weights only load failed", plant_in_index: "no part of an index|metadata is None"}
    for plant, reason in planted.items():  # torch 2.11 does not say why it found no index
        plant(step, trace)
        with pytest.raises(dcp.CheckpointException, match=reason):
            dcp.load(state, storage_reader=ShardReader(step / "class"), no_dist=True)
    np.savez(step / "host.npz", state=np.array([Planted(trace)], dtype=object))
    with pytest.raises(UserError, match="host.npz cannot be loaded"):
        checkpoint.read_host_state(step)
    seal(step)
    assert find_damage(step) is None and not trace.exists()


def test_checkpoints_without_a_manifest_are_refused(whole, tmp_path):
    for step in (1, 2):
        (shutil.copytree(whole, tmp_path / f"step-{step}") / MANIFEST).unlink()
    with pytest.raises(UserError) as caught:
        checkpoints.find("auto", tmp_path)
    message = str(caught.value)
    for step in (1, 2):
        assert f"{tmp_path}/step-{step} has no {MANIFEST}: it is damaged, or of an earlier version" in message
    assert f"There is no undamaged one in {tmp_path}: move it away" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
