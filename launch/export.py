"""Hand a trained backbone to others, or take one in.

python launch/export.py hub RUN_DIR OUTPUT [--push OWNER/NAME [--public]] [--with-class-state]
python launch/export.py onnx RUN_DIR OUTPUT.onnx
python launch/export.py from-insightface backbone.pth OUTPUT
"""

import argparse
import sys
from pathlib import Path

from ffc_ds.config.paths import expanded
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> None:
    settings = {name: expanded(name, value) for name, value in vars(parser().parse_args(arguments)).items()}
    command = settings.pop("command")

    # These take seconds, and a misspelt argument should not.
    from ffc_ds.export.hub import export_hub, import_insightface
    from ffc_ds.export.onnx import export_onnx

    {"hub": export_hub, "onnx": export_onnx, "from-insightface": import_insightface}[command](**settings)
    print(f"written: {settings['output']}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_dir = "output_dir of a finished training"

    hub = commands.add_parser("hub", help="folder for AutoModel and AutoImageProcessor, with a model card")
    hub.add_argument("run_dir", type=Path, help=run_dir)
    hub.add_argument("output", type=Path, help="folder to write; it must not exist")
    hub.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository, which is made if need be")
    hub.add_argument("--public", action="store_true", help="a repository that is made can be seen by everybody")
    hub.add_argument("--with-class-state", action="store_true", help="add class weights or pool, and the gallery net")

    onnx = commands.add_parser("onnx", help="ONNX file for any batch size, checked with onnxruntime")
    onnx.add_argument("run_dir", type=Path, help=f"{run_dir}, or a folder written by the other commands")
    onnx.add_argument("output", type=Path, help="file to write; it must not exist")

    insightface = commands.add_parser("from-insightface", help="folder for AutoModel from InsightFace's backbone.pth")
    insightface.add_argument("weights", type=Path, help="arcface_torch's backbone.pth or checkpoint_gpu_0.pt, or alike")
    insightface.add_argument("output", type=Path, help="folder to write; it must not exist")
    insightface.add_argument("--name", help="iresnet18, 34, 50, 100 or 200, to be sure (default: what the weights are)")
    insightface.add_argument(
        "--embedding-size", type=int, help="its length, to be sure (default: what the weights say)"
    )
    insightface.add_argument("--net", metavar="PREFIX", help="which one, by what its tensors' names begin with")
    return parser


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]))
