"""Where models are: in a folder, in the run that made it, or on the hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from ffc_ds.errors import UserError


def find_folder(name: str, files: list[str] | None = None) -> Path:
    """The folder `name`, or what the hub has under that name: all of it, or the `files` that match these patterns.
    Raises UserError if it is in neither place."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(f"no folder {name} here, and no such model could be got from the hub: {error}") from None


def backbone_folder(folder: Path) -> Path:
    """Where a run, or a folder, has its backbone."""
    return folder / "model" if (folder / "model").is_dir() else folder
