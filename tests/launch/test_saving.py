"""A checkpoint is written while training goes on."""

import os
import signal
import time

from tests.launched import TINY, metrics, train_ranks, train_tiny
from tests.warm import run_script

NINE = ("--train.steps", "9", "--train.checkpoint_every", "3", "--eval.holdout", "0")


def _killed_in_a_slow_save(script, *arguments):
    """Rank 1 is still at the checkpoint of step 6 when step 8 is done, and killed with half of it written."""
    from ffc_ds.distributed import rank
    from ffc_ds.training import checkpoint

    write_class_state, lines = checkpoint.write_class_state, f"{arguments[arguments.index('--output_dir') + 1]}/metrics"

    def slow(copy, writer, aside):
        write_class_state(copy, writer, aside)
        if rank() == 1 and "step-6" in writer.folder.name:
            while '{"step": 8, "epoch"' not in open(f"{lines}.jsonl").read():  # noqa: SIM115
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write_class_state = slow
    run_script(script, *arguments)


def test_steps_go_on_during_a_save_and_a_kill_loses_only_that(tmp_path):
    folder = tmp_path / "run"
    arguments = (*TINY, *NINE, "--output_dir", str(folder), "--train.step_timeout", "1")
    first, second = train_ranks(2, *arguments, how=_killed_in_a_slow_save)
    assert (first.code, second.code) == (1, -signal.SIGKILL), first.stderr[-3000:] + second.stderr[-3000:]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [".step-6.unfinished", "step-3"]
    train_tiny(2, folder, *NINE, "--resume", "auto")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-6", "step-9"]
    train_tiny(2, tmp_path / "whole", *NINE)
    assert metrics(folder) == metrics(tmp_path / "whole")
