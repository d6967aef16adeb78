"""Folders that `AutoModel` and `AutoImageProcessor` open, with this package installed or without it."""

import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

import ffc_ds
from ffc_ds.errors import UserError
from ffc_ds.export.finished_run import read_results
from ffc_ds.export.model_card import model_card
from ffc_ds.files import written_aside
from ffc_ds.models.image_processor import image_processor
from ffc_ds.models.insightface_weights import iresnet_name, load_insightface
from ffc_ds.models.opening import load_backbone
from ffc_ds.models.saving import save_backbone

FIGURES = ("roc.png", "learning_curve.png")
OUR_IMPORT = re.compile(r"^from ffc_ds\.(?:(?:models|data)\.)?(\w+) import", re.MULTILINE)


def export_hub(
    run_dir: Path, output: Path, push: str | None = None, public: bool = False, with_class_state: bool = False
) -> None:
    """Write the backbone of a finished run as a folder for the hub, with its model card, and upload it if asked.

    run_dir: output_dir of the training. output: folder to write, which must not exist. push: repository to upload it
    to, made if there is none, private unless `public`. with_class_state: add the class
    weights or the pool, and the gallery net, as the last checkpoint has them; they describe the people in the
    training images.

    Raises UserError for a run that is not finished, an output that exists, a repository that cannot be written.
    """
    results = read_results(run_dir)
    model = load_backbone(run_dir)
    state = run_dir / "checkpoints" / f"step-{results['steps']}"
    if with_class_state and not (state / "class").is_dir():
        raise UserError(f"--with-class-state: there is no class state in {state}.")
    if push:
        _check_repository(push)
    with written_aside(output) as folder:
        write_backbone(model, folder)
        figures = [name for name in FIGURES if (run_dir / name).is_file()]
        for name in figures:
            shutil.copyfile(run_dir / name, folder / name)
        if with_class_state:
            shutil.copytree(state / "class", folder / "class_state" / "class")
            shutil.copyfile(state / "host.npz", folder / "class_state" / "host.npz")
        (folder / "README.md").write_text(model_card(push or output.name, results, figures))
    if push:
        _upload(output, push, public)


def import_insightface(
    weights: Path, output: Path, name: str | None = None, embedding_size: int | None = None, net: str | None = None
) -> None:
    """Turn a backbone.pth of InsightFace's arcface_torch, or what holds one, into a folder that `AutoModel` opens.

    weights: state dict of an `iresnet`, a checkpoint with one, or safetensors. output: folder to write, which must not
    exist. name, embedding_size: the iresnet's and the length of its embedding, which the weights say and which are
    compared if given. net: which one, by the beginning of its tensors' names, if there are several. Raises UserError
    where they do not fit.
    """
    if name is not None and not name.startswith("iresnet"):
        raise UserError(f"--name {name}: InsightFace's backbone.pth holds an iresnet18, 34, 50, 100 or 200.")
    model, prefix = load_insightface(weights, net)
    found, size = iresnet_name(model), model.config.embedding_size
    if name not in (None, found):
        raise UserError(f"{weights} holds an {found}, not an {name}: leave --name out, or give the other file")
    if embedding_size not in (None, size):
        raise UserError(
            f"{weights} makes embeddings of {size} numbers, not {embedding_size}: leave --embedding-size out"
        )
    print(f"{weights}: {found}, embeddings of {size} numbers" + f", its tensors called {prefix}*" * bool(prefix))
    with written_aside(output) as folder:
        write_backbone(model, folder)


def write_backbone(model: PreTrainedModel, folder: Path) -> None:
    """Write weights (safetensors), config, image processor, and the code of the architecture and of the processor."""
    code = type(model).__module__.split(".")[-1]
    model.config.auto_map = {
        "AutoConfig": f"{code}.{type(model.config).__name__}",
        "AutoModel": f"{code}.{type(model).__name__}",
    }
    save_backbone(model, folder)
    image_processor(model.config.image_size).save_pretrained(folder)
    for module in (code, "image_processor"):
        _copy_code(module, folder)


def _copy_code(module: str, folder: Path) -> None:
    """The source of a module of this package and of what it imports from here, side by side in `folder`."""
    places = (Path(ffc_ds.__file__).parent / room / f"{module}.py" for room in ("models", "data", ""))
    source = next(path for path in places if path.is_file())
    text = source.read_text()
    # transformers follows imports of the form `from .name import`, in one folder only.
    (folder / source.name).write_text(OUR_IMPORT.sub(r"from .\1 import", text))
    for imported in OUR_IMPORT.findall(text):
        _copy_code(imported, folder)


def _check_repository(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: {error}") from None
    if "/" not in name:  # the model card says where it lies
        raise UserError(f"--push {name} has no owner: write OWNER/{name}.")


def _upload(folder: Path, repository: str, public: bool) -> None:
    api = HfApi()
    try:
        name = api.create_repo(repository, private=not public, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=folder)
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(f"{folder} is written, but could not be uploaded to {repository}: {error}") from error
