"""A run that is asked to stop, wherever the signal arrives: all ranks leave after one step, which is saved."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from ffc_ds.errors import UserError
from tests.launched import ROOT, TINY, command, environment, metrics, processes_of, train_ranks, train_tiny
from tests.warm import Call, run_script, run_warm

SETTINGS = ("--train.checkpoint_every", "1000", "--data.workers", "1")


def test_sigterm_to_the_launcher_stops_all_ranks_after_a_step_that_is_saved(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    line = command(2, *TINY, "--output_dir", str(folder), *SETTINGS, "--train.steps", "4000")
    with log.open("w") as file:
        pipes = {"stdout": file, "stderr": file}
        launcher = subprocess.Popen(line, cwd=ROOT, env=environment(WANDB_MODE="offline"), **pipes)
    lines = folder / "metrics.jsonl"
    while not (lines.exists() and '"loss"' in lines.read_text()):
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.01)
    below = psutil.Process(launcher.pid).children(recursive=True)
    assert len(below) >= 5  # the second process of the launcher, ranks, data workers
    below[0].send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(below, timeout=120)
    text = log.read_text()
    assert not left and "Traceback" not in text, (left, text)
    results = json.loads((folder / "results.json").read_text())
    assert results["preempted"] and 0 < results["steps"] < 4000
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{results['steps']}"]
    launcher.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on_bit_for_bit(tmp_path, number, code):
    folder, settings = tmp_path / "run", (*SETTINGS, "--train.steps", "40", "--eval.holdout", "0")
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(train_ranks, 2, *TINY, *settings, "--output_dir", str(folder))
        processes_of(ended, folder, 2)[1].send_signal(number)
    assert [each.code for each in ended.result()] == [code, code], ended.result()
    results = json.loads((folder / "results.json").read_text())
    assert results["preempted"] and 0 < results["steps"] < 40
    if code == 0:
        train_tiny(2, folder, *settings, "--resume", "latest")
        train_tiny(2, tmp_path / "whole", *settings)
        assert metrics(folder) == metrics(tmp_path / "whole")
        assert not json.loads((folder / "results.json").read_text())["preempted"]


def _on_a_full_disk(*line):
    from ffc_ds.training import checkpoint

    def write(target, *_):
        raise UserError(f"{target} could not be saved: disk full.")

    checkpoint.write = write
    run_script(*line)


def test_a_run_that_is_stopped_and_cannot_be_saved_does_not_end_as_if_it_were(tmp_path):
    line = (*TINY, *SETTINGS, "--train.steps", "4000", "--eval.holdout", "0", "--output_dir", str(tmp_path))
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(train_ranks, 1, *line, how=_on_a_full_disk)
        processes_of(ended, tmp_path, 1)[0].send_signal(signal.SIGTERM)
    (only,) = ended.result()
    assert only.code == 2 and "it could not be saved, and there is no checkpoint from before" in only.stdout, only
    assert json.loads((tmp_path / "results.json").read_text())["exit_code"] == 2


def _asked(pause, *numbers):
    from ffc_ds.training import preemption

    preemption.TOGETHER = 0.5
    preemption.launchers = lambda: ["a launcher, which passes signals on as SIGTERM"]
    with preemption.Preemption(torch.device("cpu")) as asked:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(pause)
        assert not asked.agreed() and asked.agreed() and asked.code == (130 if signal.SIGINT in numbers else 0)


def test_a_second_signal_stops_a_rank_at_once_unless_it_is_the_first_one_passed_on():
    passed_on = [(1.0, signal.SIGINT, signal.SIGTERM), (0.1, signal.SIGTERM, signal.SIGINT)]
    twice = (1.0, signal.SIGUSR1, signal.SIGUSR1)
    ended = run_warm([Call(_asked, case, environment()) for case in (*passed_on, twice)])
    assert [each.code for each in ended] == [0, 0, 128 + signal.SIGUSR1], ended
