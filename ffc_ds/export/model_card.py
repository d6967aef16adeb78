"""The model card: what was measured, how to use it, how it was trained."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ffc_ds.models.hub_source import PREFIX

PRIVATE = ("output_dir", "resume", "tracking")  # of the machine and the person, not of the model

TEMPLATE = """---
{metadata}
---

# {title}

{backbone}: an aligned face of {size} x {size} pixels to an embedding of {dim} numbers. The smaller the angle between
two embeddings, the more likely the two images show one person. Trained with the head `{head}` of `ffc_ds`.

## Measured

Pair verification on {benchmark}{mirrored}.

| | |
|---|---|
{measured}

{figures}

## Use

```python
import torch
from transformers import AutoImageProcessor, AutoModel

net = AutoModel.from_pretrained("{repo}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{repo}", trust_remote_code=True)
with torch.no_grad():
    embeddings = net(**processor(images, return_tensors="pt")).embeddings
cosine = torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0)
```

`images` are Pillow images of any mode, paths, or RGB arrays of 0 to 255. The processor does what training did: it turns
them upright as their EXIF says, puts what is transparent on white, scales 16 bits to 8, stretches to {size} x {size},
and maps 0 to 255 onto -1 to 1. A JPEG much larger than that comes out a few levels off, as training shrinks it while it
is decoded. Where `ffc_ds` is installed, `import ffc_ds.models` takes the place of `trust_remote_code`.

## Training

{identities:,} identities, {images:,} images, {steps:,} steps, ranks: {world_size}. {versions}.

```yaml
{config}```
"""


def model_card(repo: str, results: dict, figures: list[str]) -> str:
    """The README.md of a backbone on the hub.

    repo: what the reader will load it by. results: results.json of its training; absolute paths, the output folder and
    tracking are left out of the settings. figures: pictures that lie beside the card.
    """
    config, trained = _public(results["config"]), results["trained"]
    model, pairs = config["model"], config["eval"]["bin"]
    benchmark = Path(pairs).name if pairs else "identities that were not trained on"
    title = repo.split("/")[-1]
    measured = _measured(trained, results["untrained"])
    return TEMPLATE.format(
        metadata=_metadata(title, model["name"], benchmark, trained),
        title=title,
        repo=repo,
        backbone=model["name"],
        size=model["image_size"],
        dim=model["embedding_size"],
        head=config["head"]["name"],
        benchmark=benchmark,
        mirrored="; embeddings of image and mirror image added" if config["data"].get("flip", True) else "",
        measured="\n".join(f"| {name} | {value} |" for name, value in measured),
        figures="\n".join(f"![{Path(figure).stem.replace('_', ' ')}]({figure})" for figure in figures),
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        config=yaml.safe_dump(config, sort_keys=False),
        **{key: results[key] for key in ("identities", "images", "steps", "world_size")},
    )


def _measured(trained: dict, untrained: dict | None) -> list[tuple[str, str]]:
    if trained["accuracy"] is None:
        return [("accuracy", f"none: {trained['reason']}")]
    return [
        ("pairs", f"{trained['pairs']:,}"),
        ("accuracy, threshold chosen on the other folds", _percent(trained)),
        ("accuracy of the untrained net", _percent(untrained)),
        *(
            (f"TAR at FAR {far}", "too few pairs to tell" if tar is None else f"{tar:.4f}")
            for far, tar in trained["tar_at_far"].items()
        ),
        ("area under the ROC curve", f"{trained['auc']:.4f}"),
        ("threshold, squared distance of unit embeddings", f"{trained['threshold']:#.4g}"),
    ]


def _percent(result: dict | None) -> str:
    if result is None or result["accuracy"] is None:
        return "not known"
    return f"{100 * result['accuracy']:.2f} % ± {100 * result['accuracy_std']:.2f}"


def _metadata(title: str, backbone: str, benchmark: str, trained: dict) -> str:
    """What the hub itself reads."""
    rates = {f"tar_at_far_{far}": tar for far, tar in trained.get("tar_at_far", {}).items()}
    found = {"accuracy": trained["accuracy"]} | rates
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["face-recognition", "face-verification", "ffc_ds", backbone],
        model_name=title,
        eval_results=[
            EvalResult("face-verification", "face-pairs", benchmark, metric, value)
            for metric, value in found.items()
            if value is not None
        ],
    ).to_yaml()


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(entry) for key, entry in value.items() if key not in PRIVATE}
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if not isinstance(value, str):
        return value
    prefix = PREFIX if value.startswith(PREFIX) else ""
    path = Path(value.removeprefix(prefix))
    return f"{prefix}{path.name}" if path.is_absolute() else value
