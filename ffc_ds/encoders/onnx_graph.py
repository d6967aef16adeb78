"""What an ONNX file takes and gives, read without loading its weights into a runtime."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffc_ds.data.file_kind import file_kind
from ffc_ds.errors import UserError

FIRST_NODES = 8
SUBTRACTS, MULTIPLIES = ("Sub", "_minus"), ("Mul", "_mul")  # names of nodes begin so


class Input(NamedTuple):
    """An input of the graph."""

    name: str
    dims: list[int | None]
    """None where the file leaves it open."""
    dtype: np.dtype | None
    """None for what is no plain array."""


class Graph(NamedTuple):
    """The outside of a net."""

    inputs: list[Input]
    outputs: list[str]
    normalises: bool
    """The net itself subtracts a mean and scales: InsightFace's rule, which goes by the names of the first nodes."""
    beside: list[str]
    """Names of the files beside it that hold weights, if they are not in it."""


def read_graph(path: Path) -> Graph:
    """Raises UserError, which says what the file is, if it is no ONNX model, and if the package onnx is missing."""
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}, which is not installed: pip install ffc_ds[export]") from None
    try:
        kind = file_kind(path)
        graph = onnx.load(path, load_external_data=False).graph
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # protobuf's own kinds of error change with its version
        graph = None
    if graph is None or not graph.node or not graph.output:
        known = f"it is {kind}" if kind else "it is of an unknown kind, or cut"
        to_do = "; weights of InsightFace become a model by launch/export.py from-insightface"
        raise UserError(f"{path} is no ONNX model: {known}{to_do * path.name.endswith(('.pth', '.pt'))}")
    weights = {each.name for each in graph.initializer}  # old files list them among the inputs
    names = [node.name for node in graph.node[:FIRST_NODES]]
    return Graph(
        [_input(each, onnx) for each in graph.input if each.name not in weights],
        [each.name for each in graph.output],
        all(any(name.startswith(start) for name in names) for start in (SUBTRACTS, MULTIPLIES)),
        sorted({e.value for each in graph.initializer for e in each.external_data if e.key == "location"}),
    )


def _input(value, onnx) -> Input:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except (KeyError, TypeError, ValueError):
        dtype = None
    return Input(value.name, dims, dtype)
