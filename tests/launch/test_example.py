"""The worked example, on real faces where they lie beside the checkout: every command of it, at small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoImageProcessor, AutoModel

import ffc_ds.models  # noqa: F401 (registers the backbones)
from ffc_ds.evaluation.pair_files import read_pair_bin, write_pair_bin
from tests.launched import ROOT, environment, free_port

LFW = ROOT / ".." / "shared" / "data" / "lfw"
SMALL = {
    "model.image_size": 32,
    "model.overrides": "{width: 0.125}",
    "head.pool_size": 30,
    "data.batch_size": 24,
    "train.steps": 6,
    "eval.every": 0,
}


def extract(folder, images):
    """A folder for each person, as sets of faces come."""
    for row in pq.read_table(LFW / "train-00000-of-00004.parquet").slice(0, images).to_pylist():
        person = folder / row["name"]
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{len(list(person.iterdir())):04d}.jpg").write_bytes(row["image"]["bytes"])


@pytest.mark.skipif(not LFW.is_dir(), reason="the shared LFW folder is not here")
def test_from_images_to_a_model_for_others(tmp_path):
    extract(tmp_path / "images", images=300)
    images, same = read_pair_bin(LFW / "heldout.bin")
    some = range(0, len(same), 20)
    write_pair_bin(tmp_path / "pairs.bin", [images[2 * pair + side] for pair in some for side in (0, 1)], same[some])
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RANKS": "2", "PORT": free_port()}
    arguments = [str(tmp_path / name) for name in ("images", "pairs.bin", "out")]
    arguments += [part for key, value in SMALL.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(
        ["bash", "launch/example.sh", *arguments],
        cwd=ROOT, env=environment(**path), capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]

    out = tmp_path / "out"
    trained = json.loads((out / "run" / "results.json").read_text())["trained"]
    (evaluated,) = json.loads((out / "evaluation" / "results.json").read_text())["results"]
    assert evaluated["accuracy"] == pytest.approx(trained["accuracy"], abs=0.02)
    net = AutoModel.from_pretrained(out / "hub")
    processor = AutoImageProcessor.from_pretrained(out / "hub")
    assert net.config.image_size == 32 and processor.size["height"] == 32
    assert "face-verification" in (out / "hub" / "README.md").read_text()
    assert (out / "model.onnx").stat().st_size > 10_000
