"""A backbone that starts from weights: where they are found, which of them are taken, and which then stay."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xxhash import xxh3_128

from ffc_ds.config.settings import Config
from ffc_ds.distributed import broadcast_object, check_same, first_rank_first, rank, together
from ffc_ds.errors import UserError, shared
from ffc_ds.models.batch_norm import BatchNorm1d, BatchNorm2d
from ffc_ds.models.hub_encoder import HubEncoder
from ffc_ds.models.hub_source import PREFIX, encoder_digest, hub_weights
from ffc_ds.models.insightface_weights import UNUSED, load_insightface
from ffc_ds.models.opening import FILES, load_backbone
from ffc_ds.models.places import backbone_folder, find_folder
from ffc_ds.models.weight_files import listed
from ffc_ds.progress import say
from ffc_ds.training import checkpoint, checkpoints
from ffc_ds.training.backbone_state import read_net
from ffc_ds.training.finished import steps_of_finished
from ffc_ds.training.manifest import find_damage

T = TypeVar("T")


def start_from_weights(config: Config, net: nn.Module, start: Path | None) -> list[str]:
    """Give a new net what `model.weights` holds, unless the run goes on from the checkpoint `start`, and freeze what
    `model.freeze` names. Returns the names of the parameters that came from weights, now or when the run began.

    All ranks call it. Raises UserError on all of them for weights that are not there, are damaged or do not fit, for
    patterns that match nothing or everything, and if nothing is there to learn at `optim.backbone_lr_factor`.
    """
    name, factor = config.model.weights, config.optim.backbone_lr_factor
    initialise = config.model.weights_missing == "initialise"
    if isinstance(net, HubEncoder):
        check_same({"the digest of the encoder": encoder_digest(net.config)}, "give all hosts the same files")
    if start is not None:
        taken = together(lambda: checkpoint.names_from_weights(start))
    elif name is not None:
        place, weights = read_weights(name)
        _same_on_all(weights)
        taken = together(lambda: take_weights(net, weights, f"model.weights {place}", initialise))
    elif (name := config.model.name).startswith(PREFIX):
        weights = first_rank_first(lambda: hub_weights(name))
        _same_on_all(weights)
        taken = together(lambda: _take_from_hub(net, weights, name, initialise))
    else:
        taken = []
    if factor != 1 and not taken:
        raise shared(f"optim.backbone_lr_factor is {factor}, but nothing came from weights: give model.weights.")
    together(lambda: freeze(net, config.model.freeze))
    return taken


def read_weights(name: str) -> tuple[Path, dict[str, Tensor]]:
    """Where the weights are that `model.weights` means by a name, and the state dict of a backbone there, in host
    memory. All ranks call it; raises UserError on all of them."""
    place = first_rank_first(lambda: _told(name, lambda: _place(name)))
    # A network file system may show ranks different things.
    kind = broadcast_object(together(lambda: _told(name, lambda: _kind(place)) if rank() == 0 else None))
    if kind == "run":
        place = checkpoints.newest(place / "checkpoints")
        if place is None:
            raise shared(f"model.weights {name}: none of its checkpoints is undamaged.")
    elif kind == "checkpoint" and (damage := find_damage(place)):
        raise shared(damage)
    elif kind == "model":
        place = together(lambda: _told(name, lambda: backbone_folder(place)))
    return place, together(lambda: _told(name, lambda: _read(kind, place)))


def _told(name: str, action: Callable[[], T]) -> T:
    """What `action` returns; that of the disk which goes wrong in it is a UserError."""
    try:
        return action()
    except OSError as error:
        raise UserError(f"model.weights {name} cannot be read: {error.strerror or error}.") from error


def _place(name: str) -> Path:
    return Path(name) if Path(name).is_file() else find_folder(name)


def _kind(place: Path) -> str | None:
    if place.is_file():
        return "file"
    if (place / "backbone").is_dir():
        return "checkpoint"
    has_model = (backbone_folder(place) / FILES[1]).is_file()
    if there := checkpoints.complete(place / "checkpoints"):
        step, _ = there[-1]  # of a run that was extended, the model may be of before
        return "model" if has_model and steps_of_finished(place) == step else "run"
    return "model" if has_model else None


def _read(kind: str | None, place: Path) -> dict[str, Tensor]:
    if kind == "file":
        return load_insightface(place)[0].state_dict()
    if kind in ("checkpoint", "run"):
        return read_net(place)
    if kind == "model":
        return load_backbone(place).state_dict()  # transformers has other names in its files than in its nets
    raise UserError(
        f"model.weights {place} holds no weights: it must be a run with a model or a checkpoint, a checkpoint's folder "
        f"step-N, a folder with {FILES[1]}, or InsightFace's backbone.pth."
    )


@torch.no_grad()
def take_weights(net: nn.Module, weights: dict[str, Tensor], source: str, initialise: bool) -> list[str]:
    """Copy into `net` what fits by name and shape. Returns the names of the parameters that were given weights.

    source: what to call the weights.
    initialise: what has none keeps its initial values, position embeddings are interpolated, and what is too much is
    left out. Otherwise, and if nothing fits, UserError is raised with the names.
    """
    own = {name: value for name, value in net.state_dict().items() if not name.endswith(UNUSED)}
    weights = {name: value for name, value in weights.items() if not name.endswith(UNUSED)}
    given = {name: weights[name] for name in own if name in weights}
    if initialise:
        given |= {name: _for_grid(name, value, own[name].shape) for name, value in given.items()}
    taken = {name: value for name, value in given.items() if value.shape == own[name].shape}
    unlike = {name: f"{name} {list(given[name].shape)} not {list(own[name].shape)}" for name in given.keys() - taken}
    unknown = weights.keys() - own - dict(net.named_buffers()).keys()
    for name, value in taken.items():
        if value.is_floating_point() != own[name].is_floating_point() or not value.isfinite().all():
            raise UserError(f"{source}: {name} is not finite, or of another type, {value.dtype}.")
    complaints = (
        listed("missing", sorted(own.keys() - given))
        + listed("of another shape", [unlike[name] for name in sorted(unlike)])
        + listed("left over", sorted(unknown))
    )
    if complaints and not (initialise and taken):
        fitting = f"{len(taken)} of the {len(own)} tensors of this net are there, in the right shape"
        remedy = "model.weights_missing initialise would take these, and begin the others anew."
        raise UserError(f"{source} does not fit: {fitting}.{complaints}\n{remedy if taken else ''}")
    for name, value in taken.items():
        own[name].copy_(value)
    if rank() == 0:
        say(f"{source}: {len(taken)} of the {len(own)} tensors of the backbone are taken{complaints}")
    return sorted(taken.keys() & dict(net.named_parameters()).keys())


def _take_from_hub(net: HubEncoder, weights: dict[str, Tensor], name: str, initialise: bool) -> list[str]:
    """Give the encoder what it has learnt elsewhere; its position embeddings are for the image size there."""
    if not weights:
        if rank() == 0:
            say(f"{name} has no weights, only a configuration: it begins with initial ones")
        return []
    own = net.encoder.state_dict()
    unused = {each: own[each] for each, p in net.encoder.named_parameters() if not p.requires_grad}
    grids = {each: _for_grid(each, value, own[each].shape) for each, value in weights.items() if each in own}
    return [
        f"encoder.{each}"
        for each in take_weights(net.encoder, unused | weights | grids, f"model.name {name}", initialise)
    ]


def _for_grid(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Position embeddings [..., tokens, width] for the square grid of another image size, as ViT's own authors do it;
    a class token, or two, come before the grid. Any other tensor as it is."""
    if "position_embedding" not in name or value.dim() != len(shape) or value.shape[-1] != shape[-1]:
        return value
    for before in (1, 0, 2):
        old, new = (math.isqrt(max(tokens - before, 0)) for tokens in (value.shape[-2], shape[-2]))
        if old and new and (old**2 + before, new**2 + before) == (value.shape[-2], shape[-2]) and old != new:
            table = value.float().flatten(0, -2)
            grid = table[before:].T.unflatten(1, (old, old))[None]
            grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)[0].flatten(1).T
            return torch.cat([table[:before], grid]).view(shape)
    return value


def freeze(net: nn.Module, patterns: list[str]) -> None:
    """Let the parameters whose names match learn no more. Raises UserError for a pattern that matches none, and if none
    is left to learn."""
    parameters = dict(net.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f"model.freeze: no parameter is called {pattern}.{listed('there are', list(parameters))}")
        for name in matching:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("model.freeze leaves nothing of the backbone to train: leave a part of it out.")
    for module in net.modules():
        if isinstance(module, (BatchNorm1d, BatchNorm2d)):
            module.frozen = not any(parameter.requires_grad for parameter in module.parameters())


def _same_on_all(weights: dict[str, Tensor]) -> None:
    """Raise UserError on all ranks if those of a rank are others."""
    digest = xxh3_128()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].reshape(-1).contiguous().view(torch.uint8).numpy())
    check_same({"the digest of the weights that it starts from": digest.hexdigest()}, "give all hosts the same files")
