"""Ranks that do not come: who it was is said, and all are gone."""

import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import torch.distributed as dist

from ffc_ds.config.settings import TrainConfig
from ffc_ds.launching import run_for_user
from tests.launched import TINY, free_port, losses, processes_of, train_ranks, train_tiny
from tests.warm import Call, environment, run_script, run_warm


def _with_short_pauses(*line):
    from ffc_ds.training import watchdog

    watchdog.PAUSE = 0.2
    run_script(*line)


def test_a_rank_that_is_stopped_is_named_and_ended(tmp_path):
    limit = ("--train.steps", "9000", "--eval.holdout", "0", "--train.step_timeout", "0.1", "--data.workers", "1")
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(train_ranks, 2, *TINY, "--output_dir", str(tmp_path), *limit, how=_with_short_pauses)
        ranks = processes_of(ended, tmp_path, 2)
        below = [child for each in ranks for child in each.children()]
        ranks[1].suspend()
    first, second = ended.result()
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert re.search(
        rf"step \d+ did not end within 0.1 minutes.* rank 1 \(process {ranks[1].pid} on .*\) did not come", first.stderr
    )
    psutil.wait_procs(below, timeout=30)
    assert below and not any(each.is_running() for each in below)


def _seen_soon(*line):
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    _MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)  # seconds
    run_script(*line)


def test_a_data_worker_that_died_is_named_and_started_again_once(tmp_path):
    settings = ("--optim.schedule", "constant", "--train.accumulation", "2", "--eval.holdout", "0")
    steps = ("--train.steps", "9000", "--data.workers", "1", "--output_dir", str(tmp_path / "run"))
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(train_ranks, 1, *TINY, *settings, *steps, how=_seen_soon)
        (rank,) = processes_of(ended, tmp_path / "run", 1)
        (first,) = rank.children()
        first.kill()
        while (second := rank.children()) in ([], [first]):
            assert not ended.done(), ended.result()
            time.sleep(0.01)
        again = len(losses(tmp_path / "run"))
        while len(losses(tmp_path / "run")) < again + 5:
            assert not ended.done(), ended.result()
            time.sleep(0.01)
        second[0].kill()
    (only,) = ended.result()
    assert only.code == 2 and "Traceback" not in only.stderr, only.stderr
    death = r"a data worker of rank 0 on \S+ has died: process {} \(SIGKILL\)\. "
    assert len(re.findall(f"warning: {death.format(first.pid)}The workers are started again, once", only.stdout)) == 1
    assert re.search(f"error: {death.format(second[0].pid)}It is the second time", only.stderr)
    train_tiny(1, tmp_path / "whole", *settings, "--train.steps", str(again + 5))
    assert losses(tmp_path / "run")[: again + 5] == losses(tmp_path / "whole")


def _meets_or_not(which):
    """Two ranks at step 3: "worker" has the second one wait for a stopped process, "rank 0" stops the first one, "none"
    has each wait for something else; "opening" has the second one open its data for ever; "error" ends it."""
    from ffc_ds import distributed
    from ffc_ds.training import watchdog

    watchdog.PAUSE, watchdog.MARGIN = 0.2, 3.0
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    limits = {"step_timeout": 30 if which == "error" else 1 / 60, "open_timeout": 1 / 60 if which == "opening" else 120}
    watch = watchdog.Watchdog(TrainConfig(**limits))
    if which == "opening" and rank == 1:
        time.sleep(60)
    distributed.barrier()
    watch.at("step 3")
    if which == "worker" and rank == 1:
        watch.at("the data of step 3")
        child = subprocess.Popen(["sleep", "60"])
        child.send_signal(signal.SIGSTOP)
        time.sleep(60)
    if which == "rank 0" and rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    if which == "error" and rank == 1:
        run_for_user(partial(_fail, watch))
    if which == "none":
        time.sleep(60)
    distributed.barrier()
    time.sleep(60)


def _fail(watch):
    with watch:
        raise KeyError("what was wrong")


def ended(which):
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [environment(RANK=rank, LOCAL_RANK=rank, **job) for rank in "01"]
    return run_warm([Call(_meets_or_not, (which,), rank) for rank in ranks], kill_others=which in ("rank 0", "error"))


def test_who_waits_for_a_data_worker_is_named():
    first, second = ended("worker")
    assert first.code == second.code == 1
    assert re.search(
        r"step 3 did not end .* rank 1 .*, which is at the data of step 3 \(its data worker \d+ is stopped\), did",
        first.stderr,
    )


def test_a_rank_0_that_keeps_the_store_and_is_stopped_is_named():
    _, second = ended("rank 0")
    assert second.code == 1 and "step 3 did not end" in second.stderr and "Rank 0 does not answer" in second.stderr


def test_ranks_that_all_live_and_do_not_meet_are_named():
    first, second = ended("none")
    assert first.code == second.code == 1 and "step 3 did not end within" in first.stderr
    both = r"All live, but do not meet: rank 0 \(.*\), which is at step 3; rank 1 \(.*\), which is at step 3\."
    assert re.search(both, first.stderr)


def test_who_does_not_come_to_the_end_of_opening_is_named():
    first, second = ended("opening")
    assert first.code == second.code == 1 and "opening the data did not end within" in first.stderr
    behind = r"\(train.open_timeout\)\. rank 1 \(.*\), which is at opening the data, did not come"
    assert re.search(behind, first.stderr)


def test_the_traceback_of_an_error_is_there_before_the_others_end():
    """Whose launcher would end it with them."""
    first, second = ended("error")
    assert "KeyError: 'what was wrong'" in second.stderr, first.stderr
