"""launch/elastic.sh: a run that loses a host goes on without it. ssh and pdsh are played by scripts, across a cable."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.hosts import INTERFACE, NAMES, lacking, two_hosts
from tests.launched import ROOT, TINY, losses, train_tiny
from tests.warm import environment

SSH = f"""#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1; shift
[ "$host" = "$(hostname)" ] || ip -o link show {INTERFACE} | grep -q LOWER_UP || exit 255
exec nsenter -t "$(cat "$(dirname "$0")/$host.pid")" --net --uts --mount sh -c "$*"
"""
PDSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -w ]] && hosts=${2//,/ }; [[ $1 == -S ]] || shift; shift; done
number=0 code=0
for host in $hosts; do ssh "$host" "${*//%n/$number}" & started+=($!); number=$((number + 1)); done
for each in "${started[@]}"; do wait "$each" || code=$?; done
exit $code
"""
DEEPSPEED = f'#!/bin/sh\nexec {sys.executable} -m deepspeed.launcher.runner "$@"\n'
SETTINGS = ("--train.steps", "40", "--train.checkpoint_every", "1", "--train.step_timeout", "0.2")


def _scripts(folder: Path, pids: list[int]) -> dict[str, str]:
    folder.mkdir()
    for name, text in {"ssh": SSH, "pdsh": PDSH, "deepspeed": DEEPSPEED}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name, pid in zip(NAMES, pids, strict=True):
        (folder / f"{name}.pid").write_text(str(pid))
    return environment(PATH=f"{folder}:{os.environ['PATH']}", PAUSE="1")


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
@pytest.mark.skipif("CUT_SECONDS" not in os.environ, reason="takes a minute: set CUT_SECONDS=15")
def test_a_run_that_loses_a_host_goes_on_with_the_other(tmp_path):
    hostfile, run = tmp_path / "hostfile", tmp_path / "run"
    hostfile.write_text("# name, GPUs\n" + "".join(f"{name} slots=1\n" for name in NAMES))
    line = ["launch/elastic.sh", str(hostfile), "launch/train.py", *TINY, *SETTINGS, "--output_dir", str(run)]
    with two_hosts(tmp_path) as hosts, (tmp_path / "log").open("w") as log:
        env = _scripts(tmp_path / "bin", hosts.pids)
        loop = subprocess.Popen(hosts.command(0, *line), cwd=ROOT, env=env, stdout=log, stderr=log)
        while not list((run / "checkpoints").glob("step-*")):
            assert loop.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        hosts.cut()
        code = loop.wait(timeout=300)
    text = (tmp_path / "log").read_text()
    assert code == 0, text[-4000:]
    starts = [line for line in text.splitlines() if line.startswith("elastic.sh: a start on ")]
    assert starts == ["elastic.sh: a start on north south", "elastic.sh: a start on north"]
    assert json.loads((run / "results.json").read_text())["world_size"] == 1
    train_tiny(2, tmp_path / "whole", *SETTINGS)
    np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), rtol=2e-4)


def test_ctrl_c_is_the_end_also_where_deepspeed_reports_an_error(tmp_path):
    """As it does when it starts ranks by pdsh."""
    (tmp_path / "hostfile").write_text("north slots=1\n")
    env = _scripts(tmp_path / "bin", [0, 0])
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "deepspeed").write_text("#!/bin/bash\ntrap 'exit 1' INT\necho ready\nsleep 60 & wait\n")
    line = ["launch/elastic.sh", str(tmp_path / "hostfile"), "launch/train.py"]
    pipes = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where tests run in the background
    loop = subprocess.Popen(line, cwd=ROOT, env=env, preexec_fn=heeding, **pipes)
    assert [loop.stdout.readline() for _ in range(2)][1] == "ready\n"
    os.killpg(loop.pid, signal.SIGINT)
    assert loop.wait(timeout=60) == 130 and loop.stdout.read() == ""


def test_a_run_that_is_refused_is_not_started_again(tmp_path):
    (tmp_path / "hostfile").write_text("north slots=1\n")
    env = _scripts(tmp_path / "bin", [0, 0])
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "deepspeed").write_text('#!/bin/sh\ncat "$2"\necho "$@"\nexit 2\n')
    line = ["launch/elastic.sh", str(tmp_path / "hostfile"), "launch/train.py", "--seed", "1"]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == ""
    first, hosts, command = done.stdout.splitlines()
    assert first == "elastic.sh: a start on north" and hosts == "north slots=1"
    assert command.endswith("--force_multi launch/train.py --seed 1 --resume auto")
