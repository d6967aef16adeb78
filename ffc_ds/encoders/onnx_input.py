"""How images are put before an ONNX file: what it says itself, what settings say, and what is usual."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ffc_ds.encoders.onnx_graph import Graph
from ffc_ds.errors import UserError

LAYOUTS = {"nchw": (1, (2, 3)), "nhwc": (3, (1, 2))}  # axis of the channels, axes of height and width


@dataclass
class OnnxInput:
    """What an ONNX file takes, as far as the file does not say it or is not what the field's usually are."""

    size: int | None = None
    """Side of the square input in pixels, where the file leaves it open."""
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    """Order of the axes; auto: as the axis of three channels says."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the colours."""
    mean: float | list[float] | None = None
    """Taken off each value of 0 to 255, one number or one for each of `channels`. By default 127.5, or 0 where the net
    takes it off itself, which is told by InsightFace's rule."""
    std: float | list[float] | None = None
    """What that is then divided by, likewise; by default 127.5, or 1."""


def layout_of(path: Path, dims: list[int | None], given: OnnxInput) -> str:
    """Key of LAYOUTS for an input of such dimensions. Raises UserError, also in the two below."""
    wanted = LAYOUTS if given.layout == "auto" else [given.layout]
    for layout in wanted:
        if dims[LAYOUTS[layout][0]] == 3:
            return layout
    if given.layout != "auto" and dims[LAYOUTS[given.layout][0]] is None:
        return given.layout
    shown = [dim or "open" for dim in dims]
    if None in dims[1:] and given.layout == "auto":
        raise UserError(f"{path} takes {shown}, which does not say where the three colours are: give --onnx.layout")
    raise UserError(f"{path} takes {shown}: not images of three colours, {' or '.join(wanted)}")


def size_of(path: Path, there: list[int | None], given: OnnxInput) -> int:
    """Side of the images whose height and width are `there` in the file."""
    sizes = {size for size in (*there, given.size) if size is not None}
    if not sizes:
        raise UserError(f"{path} leaves the size of its images open: give --onnx.size, such as 112")
    if len(sizes) > 1:
        asked = "images are square here" if given.size is None else f"--onnx.size is {given.size}"
        raise UserError(f"{path} takes images of {there[0] or 'any'} x {there[1] or 'any'} pixels, and {asked}")
    (size,) = sizes
    if size < 1:
        raise UserError(f"--onnx.size is {size}; it must be 1 or more")
    return size


def normalisation_of(graph: Graph, given: OnnxInput) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, float32 [] or [3]."""
    usual = (0.0, 1.0) if graph.normalises else (127.5, 127.5)
    found = []
    for name, value, default in zip(("mean", "std"), (given.mean, given.std), usual, strict=True):
        numbers = np.array(default if value is None else value, dtype=np.float32)
        if numbers.size not in (1, 3):
            raise UserError(f"--onnx.{name} is {value}; it must be one number, or three")
        found.append(numbers)
    if (found[1] <= 0).any():
        raise UserError(f"--onnx.std is {given.std}; it must be above 0")
    return found[0], found[1]
