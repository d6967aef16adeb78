"""Tensors from the files that people keep weights in, without running anything that stands there."""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from ffc_ds.data.file_kind import file_kind
from ffc_ds.errors import UserError

LEGACY = 0x1950A86A20F9469CFC6C  # what torch.save before 1.6 began with, in a pickle of its own
LEGACY_PICKLES = 4  # the object is the last of them
TENSORS = ("torch.", "collections.", "numpy.")  # where the names come from that an ordinary file has
DEPTH = 4  # of dictionaries in one another
SHOWN = 5


class NoWeights(ValueError):
    """Why a file holds no weights, as part of a sentence."""


class Foreign:
    """Stands for every object of a file that is neither a tensor nor a plain value; its class is not looked up."""

    state: Any = None

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts in a file of torch.save or safetensors, by the keys that lead to them, each followed by a dot.

    A net that was saved as a whole counts as its state dict. Raises UserError, which says what the file is, if it is of
    another kind, is damaged, or holds no tensors by name.
    """
    try:
        states = dict(_states(_content(path), "", DEPTH))
        if not states:
            raise NoWeights("it holds no tensors by name, as a state dict does")
        return states
    except NoWeights as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception:  # hostile bytes raise almost anything, and torch's messages tell to run what stands there
        reason = "it is cut or damaged: get it again"
    raise UserError(f"{path} is no file of weights: {reason}")


def listed(what: str, names: list[str]) -> str:
    """A line of a message with the first of some names; nothing if there are none."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n  {what}: {', '.join(names[:SHOWN])}{more}" if names else ""


def _content(path: Path) -> Any:
    kind = file_kind(path)
    if kind == "safetensors":
        return safetensors.torch.load_file(path)
    if kind == "a zip archive":
        names = _names_in_zip(path)
    elif kind == "a pickle":
        names = _names_in_legacy(path)
    else:
        raise NoWeights(f"it is {kind or 'of an unknown kind'}")
    try:
        inert = torch.serialization.safe_globals([(Foreign, name) for name in names])
        with inert, warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "a zip archive")
    except pickle.UnpicklingError:
        code = ", ".join(sorted(name for name in names if not name.startswith(TENSORS)))
        if not code:
            raise
        raise NoWeights(
            f"it asks for code to be run ({code}), which is not done: save the net's state_dict()"
        ) from None


def _names_in_zip(path: Path) -> set[str]:
    """Functions and classes that a file of torch.save names. Raises NoWeights for another zip archive."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise NoWeights("it is a TorchScript archive, which holds code: save the net's state_dict() instead")
        content = next((name for name in names if name.endswith("/data.pkl")), None)
        if content is None:
            raise NoWeights(f"it is a zip archive of other files ({', '.join(names[:SHOWN])})")
        with archive.open(content) as file:
            return _names(file)


def _names_in_legacy(path: Path) -> set[str]:
    with open(path, "rb") as file:
        if LEGACY not in [argument for _, argument, _ in islice(pickletools.genops(file), 2)]:
            raise NoWeights("it is a pickle that torch.save did not write")
        file.seek(0)
        return set().union(*(_names(file) for _ in range(LEGACY_PICKLES)))


def _names(file: BinaryIO) -> set[str]:
    """Functions and classes that the next pickle of a file names, which is not run."""
    return {name.replace(" ", ".") for opcode, name, _ in pickletools.genops(file) if opcode.name == "GLOBAL"}


def _states(node: Any, where: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(node, Foreign):
        state, inner = dict(_of_module(node.state, "")), ()
    elif isinstance(node, dict):
        state, inner = node, node.items()
    elif isinstance(node, (list, tuple)):
        state, inner = {}, enumerate(node)
    else:
        return
    if state := {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}:
        yield where, state
    if depth:
        for name, value in inner:
            yield from _states(value, f"{where}{name}.", depth - 1)


def _of_module(state: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """What a module's state_dict() would have, from what a pickle keeps of it."""
    kept = state if isinstance(state, dict) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in kept.get(kind, {}).items():
            yield f"{prefix}{name}", value
    for name, child in kept.get("_modules", {}).items():
        if isinstance(child, Foreign):
            yield from _of_module(child.state, f"{prefix}{name}.")
