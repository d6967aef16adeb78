"""What a finished run leaves: the backbone, results.json, figures, and a table for the eye."""

import json
import platform
from pathlib import Path

import datasets
import deepspeed
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

import ffc_ds
from ffc_ds.config.settings import Config
from ffc_ds.errors import UserError
from ffc_ds.evaluation.figures import learning_curve, roc_figure
from ffc_ds.evaluation.verification import VerificationResult
from ffc_ds.files import write_whole
from ffc_ds.models.saving import save_backbone
from ffc_ds.training.tracking import read_metrics


def write_report(
    config: Config, results: dict, net: PreTrainedModel, weights: dict[str, Tensor], last: VerificationResult | None
) -> None:
    """Write the report of a run, with a net like `net` that has these weights; for rank 0. Raises UserError if it
    cannot be written."""
    folder = Path(config.output_dir)
    try:
        _write(config, results, net, weights, last, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the results cannot be written to {folder}: {error}. With --resume latest they are."
        ) from error


def _write(config, results, net, weights, last, folder):
    model = type(net)(net.config)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    save_backbone(model, folder / "model")
    write_results(folder, results)
    lines = read_metrics(folder / "metrics.jsonl")
    curves = {"accuracy": "pair verification"}
    if all(any(line.get(key) is not None for line in lines) for key in ("accuracy", "loss")):
        learning_curve(lines, curves, folder / "learning_curve.png", losses={"loss": "training loss"})
    if last is not None:
        roc_figure({config.head.name: last}, folder / "roc.png")


def write_results(folder: Path, results: dict) -> None:
    """Write results.json; for rank 0. Raises OSError; the file is there whole, or as it was."""
    write_whole(folder / "results.json", json.dumps(results, indent=1))


def backbone_settings(config: Config) -> dict:
    """Arguments of `build_backbone`."""
    model = config.model
    return model.overrides | {key: getattr(model, key) for key in ("name", "image_size", "embedding_size")}


def versions() -> dict[str, str]:
    """Of everything that made the result."""
    modules = (ffc_ds, torch, deepspeed, transformers, datasets)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {m.__name__: m.__version__ for m in modules} | {"python": platform.python_version(), "device": device}


def table(results: dict, folder: Path) -> str:
    """What was learnt and where it lies."""
    trained, untrained = results["trained"], results["untrained"] or {"accuracy": None}
    rows = [
        ("identities, images", f"{results['identities']:,}, {results['images']:,}"),
        ("steps, ranks", f"{results['steps']:,}, {results['world_size']}"),
        ("verification, at first", percent(untrained)),
        ("verification, at the end", percent(trained)),
        *((f"TAR at FAR {far}", _share(value)) for far, value in trained.get("tar_at_far", {}).items()),
        *([("AUC", _share(trained["auc"]))] if "auc" in trained else []),
        ("backbone", folder / "model"),
        ("figures and numbers", folder / "results.json"),
        ("", folder / "learning_curve.png"),
        ("metrics", folder / "metrics.jsonl"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def percent(result: dict) -> str:
    """Accuracy with its deviation over the folds."""
    if result["accuracy"] is None:
        return result.get("reason", "not known")
    return f"{100 * result['accuracy']:.2f} % +- {100 * result['accuracy_std']:.2f}"


def _share(value: float | None) -> str:
    return "too few pairs to tell" if value is None else f"{value:.4f}"
