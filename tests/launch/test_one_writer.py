"""One output folder, one run at a time; and a finished one stays what it is."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from ffc_ds.errors import UserError
from ffc_ds.training import run_lock
from ffc_ds.training.run_lock import RunLock
from tests.launched import TINY, processes_of, train, train_ranks


def test_a_second_run_and_a_finished_run(tmp_path):
    folder = tmp_path / "run"
    arguments = (*TINY, "--output_dir", str(folder), "--resume", "auto", "--train.steps")
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(train_ranks, 1, *arguments, "4000")
        (first,) = processes_of(ended, folder, 1)
        holder = json.loads((folder / "run.lock").read_text())
        # What is not the first one's lets the second one be refused in this process, where the first one is seen alive.
        with pytest.raises(UserError, match=rf"written to by process {first.pid} on {holder['host']}"):
            RunLock(folder)
        first.kill()
        assert ended.result()[0].code == -9
    assert train(1, *arguments, "2").returncode == 0  # whoever is gone holds nothing
    shutil.rmtree(folder / "checkpoints")
    results = (folder / "results.json").read_text()
    refused = train(1, *arguments, "2")
    assert refused.returncode == 2 and "holds a finished run" in refused.stderr
    assert (folder / "results.json").read_text() == results and not (folder / "checkpoints").exists()


def test_a_lock_of_another_host_counts_as_long_as_it_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SIGN_OF_LIFE", 0.01)
    monkeypatch.setattr(run_lock, "SILENCE", 1.0)
    lock = RunLock(tmp_path)
    held = json.loads((tmp_path / "run.lock").read_text())
    (tmp_path / "run.lock").write_text(json.dumps(held | {"machine": "another", "host": "far"}))
    with pytest.raises(UserError, match="on far, a run or what is left of one"):
        RunLock(tmp_path)
    lock._over.set()
    RunLock(tmp_path).release()
    assert (tmp_path / "run.lock").read_text() == ""
    (tmp_path / "run.lock").write_text('{"pid": 1')
    RunLock(tmp_path).release()
