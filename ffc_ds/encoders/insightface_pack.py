"""Model packs of InsightFace, such as buffalo_l: a folder of ONNX files for detection, landmarks and recognition."""

from pathlib import Path

from ffc_ds.encoders.onnx_graph import Graph, read_graph
from ffc_ds.errors import UserError

DETECTION_OUTPUTS = 5  # at least
LANDMARKS, ATTRIBUTES = 192, 96  # pixels
MANIFEST = "manifest.json"  # of InsightFace's packages of version 2


def recognition_file(folder: Path) -> Path:
    """The one that recognises faces, told as InsightFace's `ModelRouter` does: by inputs and outputs, not by names.

    Raises UserError if there is none, or several, or if the folder has a manifest.
    """
    if (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} says in {MANIFEST} which file recognises faces and what it takes, which is not read here: give "
            "the path of that file, and --onnx.mean and --onnx.std"
        )
    files = sorted(folder.glob("*.onnx"))
    found = [path for path in files if _recognises(read_graph(path))]
    names = ", ".join(path.name for path in found or files)
    if not found:
        raise UserError(
            f"none of the ONNX files in {folder} recognises faces ({names}): InsightFace takes for one of recognition "
            "what has a square input of a multiple of 16 pixels, 112 or more and not 192; another is opened by its own "
            "path"
        )
    if len(found) > 1:
        raise UserError(f"several ONNX files in {folder} recognise faces ({names}): give the path of one of them")
    return found[0]


def _recognises(graph: Graph) -> bool:
    if len(graph.outputs) >= DETECTION_OUTPUTS or len(graph.inputs) != 1 or len(graph.inputs[0].dims) != 4:
        return False
    height, width = graph.inputs[0].dims[2:]
    if height is None or height != width or height in (LANDMARKS, ATTRIBUTES):
        return False
    return height >= 112 and height % 16 == 0
