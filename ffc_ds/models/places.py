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
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"no folder {name} here")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(f"no folder {name} here, and no such model could be got from the hub: {error}") from None


def list_files(name: str) -> list[str]:
    """Names of all files of what `find_folder` finds, fetched or not. Raises UserError if the hub does not say."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return [path.name for path in folder.iterdir()]
    try:
        return huggingface_hub.list_repo_files(name)
    except Exception as error:  # of its HTTP client, which is another one from version to version
        raise UserError(f"the hub does not say which files {name} has: {error}") from error


def backbone_folder(folder: Path) -> Path:
    """Where a run, or a folder, has its backbone."""
    return folder / "model" if (folder / "model").is_dir() else folder
