"""`launch/export.py` as people run it."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from ffc_ds.models import build_backbone
from ffc_ds.models.opening import load_backbone
from launch.export import main
from tests.export.finished_run import finished_run

ROOT = Path(__file__).resolve().parents[2]


def export(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch/export.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def test_hub(tmp_path):
    finished_run(tmp_path / "run")
    done = export("hub", tmp_path / "run", tmp_path / "out", "--with-class-state")
    assert done.returncode == 0, done.stderr
    assert f"written: {tmp_path / 'out'}" in done.stdout
    assert {"README.md", "model.safetensors", "class_state"} <= set(os.listdir(tmp_path / "out"))


def test_from_insightface(tmp_path, capsys):
    net = build_backbone("iresnet18", image_size=32, embedding_size=8, width=1 / 16)
    torch.save({"state_dict_backbone": net.state_dict()}, tmp_path / "checkpoint_gpu_0.pt")
    arguments = [str(tmp_path / "checkpoint_gpu_0.pt"), str(tmp_path / "out"), "--name", "iresnet18"]
    main(["from-insightface", *arguments, "--embedding-size", "8", "--net", "state_dict_backbone."])
    assert "iresnet18, embeddings of 8 numbers, its tensors called state_dict_backbone.*" in capsys.readouterr().out
    found = load_backbone(tmp_path / "out")
    assert (found.config.depth, found.config.image_size, found.config.embedding_size) == (18, 32, 8)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in found.state_dict().items())


def test_bad_input_is_one_message_and_leaves_nothing(tmp_path):
    (tmp_path / "backbone.pth").write_text("not weights")
    done = export("from-insightface", tmp_path / "backbone.pth", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "backbone.pth is no file of weights" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["backbone.pth"]


def test_misspelt_argument():
    done = export("hub", "run", "out", "--pusch", "me/net")
    assert done.returncode == 2 and "--pusch" in done.stderr
