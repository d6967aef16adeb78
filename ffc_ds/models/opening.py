"""Open a saved backbone: from a folder, from the run that holds it, or from the hub."""

from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from ffc_ds.errors import UserError
from ffc_ds.models import BACKBONES, HubEncoder
from ffc_ds.models.places import backbone_folder, find_folder

FILES = ("config.json", "model.safetensors")


def load_model(name: str) -> PreTrainedModel:
    """A backbone of this package, in fp32 and evaluation mode, from a folder (or the run that holds it) or the hub.

    Raises UserError if it is not there, is damaged, or is another kind of model.
    """
    return load_own_backbone(find_folder(name), name).requires_grad_(False)


def load_own_backbone(folder: Path, name: str) -> PreTrainedModel:
    """As `load_backbone`, called `name`. Raises UserError if it is another kind of model, too."""
    model = load_backbone(folder)
    if not isinstance(model, (HubEncoder, *{model_class for model_class, _ in BACKBONES.values()})):
        raise UserError(
            f"{name} is a {type(model).__name__}, which gives no face embeddings: choose a backbone of ours"
        )
    return model


def load_backbone(folder: Path) -> PreTrainedModel:
    """The backbone saved in folder/model, or in `folder` itself, in fp32 and evaluation mode. Raises UserError."""
    path = backbone_folder(folder)
    for name in FILES:
        if not (path / name).is_file():
            raise UserError(f"{path} holds no backbone: {name} is missing. A finished training leaves RUN_DIR/model.")
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what does not fit is said below, once
    try:
        model, report = AutoModel.from_pretrained(
            path,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,  # nor is anybody asked
        )
    except Exception as error:  # of any kind: it comes from what a model does with a damaged configuration
        raise UserError(f"The backbone in {path} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    if unfit := sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}):
        raise UserError(f"The weights in {path} do not fit its config.json: {len(unfit)} of them, first {unfit[0]}.")
    return model.eval()
