"""Backbones as ONNX files, which onnxruntime and InsightFace's `ArcFaceONNX` run."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ffc_ds.errors import UserError
from ffc_ds.files import written_aside
from ffc_ds.models.hub_encoder import HubEncoder
from ffc_ds.models.opening import load_own_backbone

BATCHES = (1, 7)
TOLERANCE = 1e-4


class _Embeddings(nn.Module):
    """A backbone that returns the bare tensor."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.backbone(pixel_values).embeddings


def export_onnx(run_dir: Path, output: Path) -> None:
    """Write the backbone as an ONNX file for any batch size, checked against torch with onnxruntime.

    Its input `pixel_values` is float32 [N, 3, S, S], RGB in [-1, 1]; its output `embeddings` is float32 [N, D], not
    normalised. InsightFace's `ArcFaceONNX` takes it; its `model_zoo.get_model` recognises it as one where S is a
    multiple of 16, 112 or more, and not 192.

    run_dir: output_dir of a finished training, or a folder with a backbone. output: file to write; it must not exist.

    Raises UserError for these, for a missing package, and where onnxruntime's embeddings are not torch's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}, which is not installed: pip install ffc_ds[export]") from None
    model = load_own_backbone(run_dir, str(run_dir))
    net, size = _Embeddings(model).eval(), model.config.image_size
    truth = _truth(net, size)
    if isinstance(model, HubEncoder):
        model.encoder.set_attn_implementation("eager")  # the fused one of Swin cannot be traced
    with written_aside(output) as path:
        try:
            torch.onnx.export(
                net,
                (torch.zeros(2, 3, size, size),),
                path,
                dynamo=True,
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("N")}},
                input_names=["pixel_values"],
                output_names=["embeddings"],
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f"torch cannot write this net as ONNX: {error.__cause__ or error}") from error
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for pixels, embeddings in truth:
            (found,) = session.run(None, {"pixel_values": pixels})
            error = np.abs(found - embeddings).max() / np.abs(embeddings).max()
            if not error <= TOLERANCE:
                raise UserError(f"The file's embeddings of {len(pixels)} images are off by {error:.1e} of the largest.")


@torch.no_grad()
def _truth(net: nn.Module, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs of each batch size, and what torch makes of them."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for batch in BATCHES]
    truth = [(pixels.numpy(), net(pixels).numpy()) for pixels in inputs]
    if not all(np.isfinite(embeddings).all() for _, embeddings in truth):
        raise UserError("The embeddings of this backbone are not finite: it has not been trained far enough.")
    return truth
