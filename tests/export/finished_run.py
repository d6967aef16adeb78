"""A folder as a finished training leaves it, with a small backbone whose weights and statistics have moved."""

import json
from pathlib import Path

import numpy as np
import torch

from ffc_ds.models import build_backbone

SMALL = {
    "iresnet18": {"depth": [1, 1, 1, 1], "width": 0.25},
    "mobilefacenet": {},
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}


def trained(name: str, image_size: int):
    torch.manual_seed(0)
    model = build_backbone(name, image_size, 24, **SMALL.get(name, {}))
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(4, 3, image_size, image_size) * 2 - 1)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def finished_run(folder: Path, name: str = "iresnet18", image_size: int = 32):
    """Write the run. Returns its backbone."""
    model = trained(name, image_size)
    model.save_pretrained(folder / "model")
    found = {"accuracy": 0.8342, "accuracy_std": 0.0188, "threshold": 1.51, "auc": 0.9075, "pairs": 6000}
    results = {
        "untrained": {**found, "accuracy": 0.6358, "tar_at_far": {"0.01": 0.1, "0.001": 0.05}},
        "trained": {**found, "tar_at_far": {"0.01": 0.4801, "0.001": None}},
        **{"steps": 7, "refused_steps": 0, "identities": 4600, "images": 10716, "world_size": 2, "seed": 3},
        "versions": {"ffc_ds": "0.1.0", "torch": "2.13.0", "device": "cpu"},
        "config": {
            "output_dir": "/home/someone/runs/one",
            "seed": 3,
            "resume": None,
            "data": {"train": ["/home/someone/faces", "owner/others"], "batch_size": 128},
            "model": {"name": name, "image_size": image_size, "embedding_size": 24, "overrides": SMALL.get(name, {})},
            "head": {"name": "ffc", "pool_size": 460.0},
            "eval": {"bin": "/home/someone/heldout.bin"},
            "tracking": {"project": "secret"},
        },
    }
    (folder / "results.json").write_text(json.dumps(results))
    for figure in ("roc.png", "learning_curve.png"):
        (folder / figure).write_bytes(b"a picture")
    checkpoint = folder / "checkpoints" / "step-7"
    (checkpoint / "class").mkdir(parents=True)
    (checkpoint / "class" / "__0_0.distcp").write_bytes(b"class weights")
    np.savez(checkpoint / "host.npz", order=np.arange(5))
    return model


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
