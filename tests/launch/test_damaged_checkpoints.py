"""Runs that find a damaged checkpoint, one made by a stranger, a full disk, or folders that are not shared."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffc_ds.training.manifest import MANIFEST, find_damage
from tests.launched import TINY, free_port, losses, metrics, train, train_tiny
from tests.untrusted import plant_as_bytes, seal
from tests.warm import Call, environment, run_script, run_warm

FOUR = ("--train.steps", "4", "--train.checkpoint_every", "2", "--deepspeed", "ds_configs/zero2.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train_tiny(2, folder, *FOUR)
    return folder


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def refusal(folder: Path, *arguments: str) -> str:
    done = train(2, *TINY, *FOUR, "--output_dir", str(folder), *arguments)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr.split("error: ")[1]


def test_a_damaged_checkpoint_is_not_gone_on_from(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    folder = run / "checkpoints"
    damage(folder / "step-4" / "class" / "__1_0.distcp")
    shutil.copytree(folder / "step-2", folder / ".step-3.unfinished")
    (folder / ".step-3.unfinished" / MANIFEST).unlink()  # which is written last
    done = train_tiny(2, run, *FOUR, "--resume", "auto")
    assert done.stdout.count("class/__1_0.distcp is not what was written") == 1
    assert f"It is kept as {folder}/damaged-step-4" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-4", "step-2", "step-4"]
    assert metrics(run) == metrics(finished)
    assert find_damage(folder / "step-4") is None
    message = refusal(tmp_path / "other", "--resume", str(folder / "damaged-step-4"))
    assert f"{folder}/damaged-step-4 is damaged: class/__1_0.distcp is not what was written" in message
    assert "Undamaged beside it: step-2, step-4." in message


def test_nothing_of_a_stranger_is_run(finished, tmp_path):
    step = shutil.copytree(finished / "checkpoints" / "step-2", tmp_path / "step-2")
    trace = tmp_path / "trace"
    plant_as_bytes(step, trace)
    seal(step)
    part = "class cannot be loaded: torch.distributed.checkpoint.metadata.BytesStorageMetadata is no part"
    assert part in refusal(tmp_path / "run", "--resume", str(step))
    assert not trace.exists()


def on_a_disk_that_is_full(arguments, until):
    """launch/train.py where rank 1 finds the disk full in the middle of a save, before step `until` is done; nothing
    but waiting for room takes time there."""
    from ffc_ds.distributed import rank
    from ffc_ds.training import manifest, saver

    class FullDisk:
        def __init__(self, path):
            self._file = open(path, "wb")  # noqa: SIM115

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self._file, name)

    slept = []
    saver.time = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    write = saver.Saver._write

    def planted(self, copy):
        full = copy.step < until and rank() == 1
        manifest.open = (lambda path, mode, **_: FullDisk(path)) if full else open
        return write(self, copy)

    saver.Saver._write = planted
    run_script("launch/train.py", *arguments)


def together(world, function, *arguments, **each):
    """Ends of `function(*arguments)` on ranks as the launcher starts them; each: a variable's value for every rank."""
    job = {"WORLD_SIZE": str(world), "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return run_warm(
        [
            Call(
                function,
                arguments,
                environment(
                    RANK=str(number), LOCAL_RANK=str(number), **job, **{key: each[key][number] for key in each}
                ),
            )
            for number in range(world)
        ]
    )


def test_training_goes_on_while_the_disk_is_full(finished, tmp_path):
    arguments = (*TINY, *FOUR, "--train.checkpoint_every", "1", "--output_dir", str(tmp_path))
    first, second = together(2, on_a_disk_that_is_full, arguments, 3)
    assert (first.code, second.code) == (0, 0), first.stderr[-3000:] + second.stderr[-3000:]
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        warning = f"warning: {folder}/step-{step} could not be saved: disk full: No space left on device."
        assert first.stdout.count(warning) == 1 and warning not in second.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["step-3", "step-4"]
    assert losses(tmp_path) == losses(finished)


def test_a_run_does_not_end_without_its_last_checkpoint(tmp_path):
    arguments = (*TINY, "--train.steps", "1", "--train.final_save_minutes", "1", "--output_dir", str(tmp_path))
    first, second = together(2, on_a_disk_that_is_full, arguments, 9)
    assert (first.code, second.code) == (2, 2), first.stderr[-3000:] + second.stderr[-3000:]
    assert "disk full" in first.stderr and "--resume auto goes on" in first.stderr and "error" not in second.stderr
    assert first.stdout.count("waiting for room") == 10
    assert not list((tmp_path / "checkpoints").iterdir()) and not (tmp_path / "results.json").exists()


def hasty(arguments):
    from ffc_ds import shared_folder

    shared_folder.PATIENCE = 0.3
    run_script("launch/train.py", *arguments)


def test_hosts_that_do_not_share_the_output_folder(tmp_path):
    homes = [str(tmp_path / "a"), str(tmp_path / "b")]
    for home in homes:
        Path(home, "run").mkdir(parents=True)
    first, second = together(2, hasty, (*TINY, "--output_dir", "$PLACE/run"), PLACE=homes)
    assert (first.code, second.code) == (2, 2), first.stderr[-3000:] + second.stderr[-3000:]
    assert f"output_dir {homes[0]}/run is not one folder for all ranks" in first.stderr
    assert f"is not seen by {os.uname().nodename} (rank 1)" in first.stderr
    assert not list(Path(homes[0], "run").iterdir())
