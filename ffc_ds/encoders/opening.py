"""Open a model by name, whatever it is."""

from pathlib import Path

import torch

from ffc_ds.data.content import content_fingerprint, everything
from ffc_ds.encoders.base import Encoder
from ffc_ds.encoders.insightface_pack import recognition_file
from ffc_ds.encoders.net import NetEncoder
from ffc_ds.encoders.onnx_file import OnnxEncoder
from ffc_ds.encoders.onnx_input import OnnxInput
from ffc_ds.errors import UserError
from ffc_ds.models.opening import FILES, load_model
from ffc_ds.models.places import backbone_folder, find_folder


def open_encoder(name: str, onnx: OnnxInput, device: torch.device) -> Encoder:
    """The model called `name`: a backbone of this package in a folder, in the run that made it or on the hub, an ONNX
    file, or a folder of ONNX files as InsightFace gives out, one of which recognises faces.

    onnx: what is said of an ONNX file's input. Nothing that is opened can run code. Raises UserError for a name that
    leads to none of these, and for a model that gives no embedding.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return OnnxEncoder(path, onnx, device)
    folder = backbone_folder(find_folder(name))
    if not (folder / FILES[0]).is_file() and any(folder.glob("*.onnx")):
        return OnnxEncoder(recognition_file(folder), onnx, device)
    if onnx != OnnxInput():
        raise UserError(f"{name} is no ONNX file: it says itself what it takes, leave --onnx.* out")
    model = load_model(name)
    weights = content_fingerprint([(file, folder / file) for file in FILES], whole=everything)
    return NetEncoder(model, device, weights)
