"""Weights of InsightFace's `iresnet`: the backbone.pth that its arcface_torch training writes."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ffc_ds.errors import UserError
from ffc_ds.models.iresnet import IResNet

SHOWN = 5


def load_insightface_weights(model: IResNet, path: str | Path) -> None:
    """Fill `model` by name with a saved state dict; its embeddings are then those of InsightFace's net.

    The file is read without running code from it. Raises UserError if it is no such file, or if a tensor is missing,
    unexpected or of another shape, with the names; the model is then left as it was.
    """
    found, expected = _read(path), model.state_dict()
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    shapes = [
        f"{name} is {list(found[name].shape)} there, {list(value.shape)} here"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    complaints = (
        _list("missing", sorted(missing)) + _list("unexpected", sorted(unexpected)) + _list("of another shape", shapes)
    )
    if complaints:
        raise UserError(f"{path} does not fit this {type(model).__name__}:{complaints}")
    model.load_state_dict(found)


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"{path} is no file of weights: {reason[0] if reason else 'it ends too early'}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is no state dict: it must map names to tensors, as InsightFace's backbone.pth does.")
    return state


def _list(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n  {what}: {', '.join(names[:SHOWN])}{more}" if names else ""
