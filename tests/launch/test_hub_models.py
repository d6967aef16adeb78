"""Encoders of the hub are trained, exported and judged as our own backbones are."""

import json

import numpy as np
import pytest

from ffc_ds.evaluation.pair_files import write_pair_bin
from ffc_ds.evaluation.run import evaluate
from ffc_ds.evaluation.settings import parse_settings
from ffc_ds.export.hub import export_hub
from ffc_ds.export.onnx import export_onnx
from tests.hub_models import hub_model
from tests.launched import TINY, losses, train
from tests.protocol_data import person_folders

STAGES = {
    "dinov2": "zero3",
    "swin": "zero1",
    "convnextv2": "zero2",
    "resnet": "zero0",
    "siglip": "zero3",
}
FIGURES = ("accuracy", "auc", "tar_at_far")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    faces = person_folders(folder / "faces", people=6, images=3)
    images = [path.read_bytes() for path in sorted(faces.rglob("*.jpg"))]
    write_pair_bin(folder / "faces.bin", [*images, *images[1:], images[0]], np.arange(18) % 3 < 2)
    return folder / "faces.bin"


@pytest.mark.parametrize("family", STAGES)
def test_a_family_is_trained_exported_and_judged(pairs, tmp_path, family):
    name, run = f"hub:{hub_model(tmp_path / 'hub', family)}", tmp_path / "run"
    tiny = [*TINY[: TINY.index("--model.name")], *TINY[TINY.index("--head.pool_size") :]]
    settings = ("--model.name", name, "--model.embedding_size", "16", "--train.steps", "2", "--output_dir", str(run))
    settings += ("--deepspeed", f"ds_configs/{STAGES[family]}.json", "--optim.backbone_lr_factor", "0.1")
    settings += ("--train.average", "0.9", "--head.gallery_momentum", "0.9", "--eval.bin", str(pairs))
    done = train(2 if STAGES[family] == "zero3" else 1, *tiny, *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"model.name {name}" in done.stdout and len(losses(run)) == 2
    found = json.loads((run / "results.json").read_text())["trained"]
    export_hub(run, tmp_path / "out")
    told = parse_settings(
        ["--model", str(tmp_path / "out"), "--pairs", str(pairs), "--output_dir", str(tmp_path / "judged")]
    )
    evaluate(told)
    (judged,) = json.loads((tmp_path / "judged" / "results.json").read_text())["results"]
    for figure in FIGURES:
        assert judged[figure] == pytest.approx(found[figure], abs=5e-5), figure
    if family == "swin":  # the one that is hard to trace
        export_onnx(tmp_path / "out", tmp_path / "net.onnx")  # compares embeddings


def test_it_goes_on_without_the_weights_that_it_began_with(tmp_path):
    folder = hub_model(tmp_path / "hub", "vit")
    tiny = [*TINY[: TINY.index("--model.name")], *TINY[TINY.index("--head.pool_size") :]]
    settings = (
        "--model.name",
        f"hub:{folder}",
        "--model.embedding_size",
        "16",
        "--train.steps",
        "2",
        "--eval.holdout",
        "0",
    )
    begun = (*settings, "--train.checkpoint_every", "1", "--optim.backbone_lr_factor", "0.1")
    assert train(1, *tiny, *begun, "--output_dir", str(tmp_path / "run")).returncode == 0
    (folder / "model.safetensors").unlink()
    first = str(tmp_path / "run" / "checkpoints" / "step-1")
    done = train(1, *tiny, *begun, "--output_dir", str(tmp_path / "other"), "--resume", first)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "other") == losses(tmp_path / "run")[1:]
