"""What cannot work is refused on every rank: one readable message, exit code 2, nothing hangs (there is a limit)."""

import json
import shutil
import socket
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from tests.launched import ROOT, TINY, environment, launch, train, train_tiny

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


def parquet(folder, **columns):
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")
    return str(folder)


def refused(*arguments, mentions, start=train):
    done = start(2, *TINY, *arguments)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("error: ") == 1, done.stderr[-3000:]
    message = done.stderr.split("error: ")[1].split("\n\n")[0]
    assert "Traceback" not in done.stderr
    for word in mentions:
        assert word in message
    return message


def test_misspelt_setting(tmp_path):
    refused("--head.margn", "am", mentions=["head.margn", "head.margin"], start=launch)


def test_a_wrong_ds_config_is_found_before_any_data_is_read_from_any_folder(tmp_path):
    (tmp_path / "odd.json").write_text('{"zero_optimization": {"stage": 7}}')
    arguments = ("--config", "launch/recipes/quickstart.yaml", "--deepspeed", "odd.json", "--data.train", "./nowhere")
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "train.py", *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "error: DeepSpeed cannot work with odd.json" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["odd.json"]


def test_missing_column(tmp_path):
    data = parquet(tmp_path / "data", picture=[{"bytes": PIXEL, "path": None}] * 4, label=[0, 0, 1, 1])
    refused("--data.train", data, "--output_dir", str(tmp_path / "run"), mentions=["image", "picture"])


def test_damaged_images_that_leave_nothing_of_an_identity(tmp_path):
    images = [{"bytes": PIXEL, "path": None}] * 40
    images[36] = images[37] = {"bytes": PIXEL[:-30], "path": None}
    data = parquet(tmp_path / "data", image=images, label=[i // 2 for i in range(40)])
    settings = ("--data.train", data, "--output_dir", str(tmp_path / "run"), "--eval.holdout", "0.2")
    settings += ("--eval.pairs", "20", "--head.pool_size", "12", "--train.steps", "20")
    # one rank meets it in the middle of a step; the launcher ends the other
    refused(*settings, mentions=["(label 18)"], start=launch)


def test_a_port_that_another_run_uses(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        there = partial(launch, port=str(port))
        refused("--output_dir", str(tmp_path), mentions=[f"port {port}", f"--master_port {port + 1}"], start=there)


def test_more_shared_memory_than_there_is(tmp_path):
    many = ("--data.workers", str(10**7), "--output_dir", str(tmp_path / "run"))
    refused(*many, mentions=["data.workers 10000000", "1,474,560 MB", "/dev/shm", "--shm-size"])


def test_pool_smaller_than_a_global_view(tmp_path):
    refused(
        "--head.pool",
        "lru",
        "--head.pool_size",
        "11",
        "--output_dir",
        str(tmp_path / "run"),
        mentions=["pool of 11 slots", "12"],
    )


def test_missing_checkpoint(tmp_path):
    refused("--resume", "latest", "--output_dir", str(tmp_path / "run"), mentions=["no checkpoint", str(tmp_path)])


def test_checkpoint_of_another_model_and_with_a_part_missing(tmp_path):
    train_tiny(2, tmp_path / "run", "--train.steps", "1")
    step = tmp_path / "run" / "checkpoints" / "step-1"
    other = ("--output_dir", str(tmp_path / "run"), "--resume", "latest", "--train.steps", "2")
    refused("--output_dir", str(tmp_path / "run"), mentions=["earlier run", "--resume latest"])
    changed = ("--model.embedding_size", "24", "--seed", "7")
    refused(*other, *changed, mentions=["model.embedding_size is 16 there and 24 here; seed is 0 there and 7 here."])
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    mentions = ["holds checkpoints of an earlier run", "--resume latest"]
    refused(*other[:2], "--resume", str(tmp_path / "twin" / "checkpoints" / step.name), mentions=mentions)
    (step / "host.npz").unlink()
    refused(*other, mentions=["host.npz", "missing"])
    assert json.loads((step / "run.json").read_text())["step"] == 1
