"""`launch/train.py` for tests, as processes of their own, with a small net and small data.

`launch` goes through the public door, the launcher. `train` starts the ranks as the launcher does, forked from a
process that has imported everything, without the two processes in between, each of which imports DeepSpeed too.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from tests.warm import ROOT, Call, Ended, environment, run_script, run_warm

TINY = [
    *("--data.train", "generated:60:32", "--data.batch_size", "24", "--data.workers", "0", "--data.shift", "2"),
    *("--model.name", "vit", "--model.image_size", "32", "--model.embedding_size", "16"),
    "--model.overrides",
    "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, batch_norm: false}",
    *("--head.pool_size", "25", "--train.log_every", "1", "--eval.pairs", "100", "--eval.batch_size", "64"),
]
TIMING = {"images_per_second", "data_wait", "save_stall", "memory_gib", "prefill_seconds"}


_kept = []


def free_port() -> str:
    """A port for one run. Until this process ends nobody else gets it: it is bound, but so that the run may listen."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    _kept.append(probe)
    return str(probe.getsockname()[1])


def command(world: int, *arguments: str, port: str | None = None) -> list[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(world)]
    return [*launcher, "--master_port", port or free_port(), "launch/train.py", *arguments]


def launch(world: int, *arguments: str, port: str | None = None, **env: str) -> subprocess.CompletedProcess:
    line, env = command(world, *arguments, port=port), environment(**env)
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def train(world: int, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """What all ranks wrote, and their exit code, which is the same."""
    codes, *streams = zip(*train_ranks(world, *arguments, **env), strict=True)
    stdout, stderr = map("".join, streams)
    assert len(set(codes)) == 1, f"exit codes {codes}: {stderr[-4000:]}"
    return subprocess.CompletedProcess(arguments, codes[0], stdout, stderr)


def train_ranks(
    world: int, *arguments: str, how: Callable = run_script, script: str = "launch/train.py", **env: str
) -> list[Ended]:
    """How each rank ended."""
    job = {"WORLD_SIZE": str(world), "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    line = script, *arguments
    ranks = [environment(RANK=rank, LOCAL_RANK=rank, **(job | env)) for rank in map(str, range(world))]
    return run_warm([Call(how, line, rank) for rank in ranks])


def processes_of(ended: Future, folder: Path, world: int, done: int = 0) -> list[psutil.Process]:
    """The ranks that `train_ranks` runs in another thread for an output folder, once they have done one more step than
    `done`."""
    lines = folder / "metrics.jsonl"
    while not (lines.exists() and f'{{"step": {done + 1}, "epoch"' in lines.read_text()):
        assert not ended.done(), ended.result()
        time.sleep(0.01)
    first = psutil.Process(json.loads((folder / "run.lock").read_text())["pid"])
    siblings = sorted(each.pid for each in first.parent().children())
    return [psutil.Process(pid) for pid in siblings[siblings.index(first.pid) :]][:world]


def train_tiny(world: int, folder: Path, *arguments: str, start=train, **env: str) -> subprocess.CompletedProcess:
    done = start(world, *TINY, "--output_dir", str(folder), *arguments, **env)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def class_state(checkpoint: Path) -> dict[str, np.ndarray]:
    """Everything of a checkpoint that does not go through DeepSpeed, whole."""
    about = FileSystemReader(checkpoint / "class").read_metadata().state_dict_metadata
    state = {name: _empty(entry) for name, entry in about.items()}
    dcp.load(state, checkpoint_id=str(checkpoint / "class"), no_dist=True)
    with np.load(checkpoint / "host.npz") as host:
        return {name: _array(value) for name, value in state.items()} | dict(host)


def _array(value):
    return value.float().numpy() if value.is_floating_point() else value.numpy()  # numpy has no bf16


def _empty(entry):
    return torch.empty(entry.size, dtype=entry.properties.dtype)
