"""An ONNX file, run by onnxruntime."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ffc_ds.data.content import content_fingerprint, everything
from ffc_ds.distributed import rank
from ffc_ds.encoders.base import Encoder
from ffc_ds.encoders.onnx_graph import read_graph
from ffc_ds.encoders.onnx_input import LAYOUTS, OnnxInput, layout_of, normalisation_of, size_of
from ffc_ds.errors import UserError
from ffc_ds.progress import say


class OnnxEncoder(Encoder):
    """An ONNX file with one input, square images of three colours, and one output, their embeddings.

    Runs where onnxruntime can: on `device`, or on the CPU with as many threads as torch has. Raises UserError for any
    other file, and where file and settings leave open, or disagree on, what the input is.
    """

    def __init__(self, path: Path, given: OnnxInput, device: torch.device):
        graph = read_graph(path)
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise UserError(
                f"{path} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs ({', '.join(graph.outputs)}): "
                "a model that embeds has one input, the images, and one output, their embeddings"
            )
        self._input = graph.inputs[0]
        if len(self._input.dims) != 4 or self._input.dtype not in (np.float32, np.float16):
            raise UserError(
                f"{path} takes {self._input.dtype} {self._input.dims}: images are four axes of float32 or float16"
            )
        layout = layout_of(path, self._input.dims, given)
        self.image_size = size_of(path, [self._input.dims[axis] for axis in LAYOUTS[layout][1]], given)
        self._bgr, self._channels_first = given.channels == "bgr", layout == "nchw"
        self._mean, self._std = normalisation_of(graph, given)
        self._path, self._session = path, _session(path, device)
        self.dim = self._dim()
        treatment = {name: value.tolist() for name, value in (("mean", self._mean), ("std", self._std))}
        # Its own name does not count: a copy under another one is the same model.
        files = [("model.onnx", path), *((name, path.parent / name) for name in graph.beside)]
        treatment |= {"channels": given.channels, "size": self.image_size, "layout": layout}
        self.about = {"weights": content_fingerprint(files, whole=everything), **treatment}
        if rank() == 0:
            size, means = self.image_size, f"(pixel - {treatment['mean']}) / {treatment['std']}"
            say(f"{path}: {size} x {size} pixels, {layout}, {given.channels}, {means}, embeddings of {self.dim}")

    def __call__(self, pixels: Tensor) -> Tensor:
        images = pixels.numpy()[..., ::-1] if self._bgr else pixels.numpy()
        images = (images.astype(np.float32) - self._mean) / self._std
        if self._channels_first:
            images = images.transpose(0, 3, 1, 2)
        images = np.ascontiguousarray(images, dtype=self._input.dtype)
        step = self._input.dims[0] or len(images)  # where the file has a batch size, it takes no other
        found = [self._run(images[start : start + step], step) for start in range(0, len(images), step)]
        return torch.from_numpy(np.concatenate(found)).float()

    def _run(self, images: np.ndarray, batch: int) -> np.ndarray:
        count = len(images)
        if count < batch:
            images = np.concatenate([images, np.zeros_like(images, shape=(batch - count, *images.shape[1:]))])
        (found,) = self._session.run(None, {self._input.name: images})
        return found[:count]

    def _dim(self) -> int:
        try:
            found = self(torch.zeros(2, self.image_size, self.image_size, 3, dtype=torch.uint8))
        except Exception as error:  # onnxruntime's errors have no common kind
            raise UserError(
                f"{self._path} cannot be run on images of {self.image_size} pixels: {_first_line(error)}"
            ) from None
        if found.dim() != 2 or len(found) != 2:
            raise UserError(f"{self._path} makes {list(found.shape)} of two images: embeddings are [2, length]")
        return found.shape[1]


def _session(path: Path, device: torch.device):
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}, which is not installed: pip install ffc_ds[export]") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
    elif device.type == "cuda" and rank() == 0:
        say(f"{path} runs on the CPU: this onnxruntime is without CUDA, which onnxruntime-gpu has")
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # they have no common kind
        raise UserError(f"{path} cannot be opened by onnxruntime: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
