"""What an export reads and how it writes: a finished run, a saved backbone, an output that is there whole or not."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

import ffc_ds.models  # noqa: F401 (makes the backbones known to AutoModel)
from ffc_ds.errors import UserError


def read_results(run_dir: Path) -> dict:
    """The results.json of a finished run. Raises UserError if the run is not finished or the file is damaged."""
    path = run_dir / "results.json"
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. RUN_DIR must be the output_dir of a finished training.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    wanted = {"trained", "untrained", "steps", "identities", "images", "world_size", "seed", "versions", "config"}
    if missing := wanted - (results.keys() if isinstance(results, dict) else set()):
        raise UserError(f"{path} is no report of a training: it lacks {', '.join(sorted(missing))}.")
    return results


def load_backbone(folder: Path) -> PreTrainedModel:
    """The backbone saved in folder/model, or in `folder` itself, in fp32 and evaluation mode. Raises UserError."""
    path = folder / "model" if (folder / "model").is_dir() else folder
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise UserError(f"{path} holds no backbone: {name} is missing. A finished training leaves RUN_DIR/model.")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what does not fit is said below, once
    try:
        model, report = AutoModel.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The backbone in {path} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    if unfit := sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}):
        raise UserError(f"The weights in {path} do not fit its config.json: {len(unfit)} of them, first {unfit[0]}.")
    return model.eval()


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which takes the name `target` only if all went well.

    Raises UserError if `target` exists already or cannot be written; whatever goes wrong, nothing is left behind.
    """
    if target.exists():
        raise UserError(f"{target} exists already: remove it, or choose another output.")
    aside = target.with_name(f".{target.name}.unfinished")
    _remove(aside)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
