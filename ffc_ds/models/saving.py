"""Write a backbone as the files that `AutoModel` opens."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging


def save_backbone(model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights (safetensors) into `folder`, for whoever the umask lets read them."""
    logging.disable_progress_bar()  # of the number of files, which is one
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # the library makes them for their owner alone
        shutil.copymode(folder / "config.json", weights)
