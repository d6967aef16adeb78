"""The settings of an evaluation, and how they are read from the command line."""

from dataclasses import dataclass, field

import docstring_parser

from ffc_ds.config.command_line import make_parser, read_settings
from ffc_ds.config.paths import PathName
from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.encoders.onnx_input import OnnxInput

LISTS = ("pairs", "ijb", "noises")


@dataclass
class EvaluationConfig:
    """What to evaluate, and on what."""

    model: PathName
    """Folder of a backbone (RUN_DIR/model, or RUN_DIR), or its name on the hub; an ONNX file; a model pack of
    InsightFace, such as the folder buffalo_l."""
    output_dir: PathName
    """Folder to write: results.json, table.md, roc.png, histogram.png, errors.png. It must not exist."""
    pairs: list[PathName] = field(default_factory=list)
    """Pair sets: InsightFace .bin files, lists such as LFW's pairs.txt (videos: YTF's splits.txt), CFP's Split/FP."""
    images: PathName | None = None
    """Folder with the images of the lists of pairs; by default the one each list is in."""
    ijb: list[PathName] = field(default_factory=list)
    """Folders of IJB-B or IJB-C, each with loose_crop and meta."""
    probes: PathName | None = None
    """MegaFace-style identification: folder with a folder of images for each person."""
    distractors: PathName | None = None
    """The images of others that the probes' mates must be told from, in a folder with any folders inside."""
    noises: list[PathName] = field(default_factory=list)
    """Lists of images to leave out of both, such as InsightFace's facescrub_noises.txt and megaface_noises.txt."""
    flip: bool = True
    """Add the features of an image and of its mirror image."""
    detector_score: bool = True
    """IJB: weight images by the score of the face detector."""
    feature_norm: bool = True
    """IJB: weight images by the length of their features as well, as InsightFace does by default."""
    batch_size: int = 64
    """Images per rank and forward."""
    max_megapixels: float = MAX_MEGAPIXELS
    """An image whose header announces more is refused before it is decoded; at most 178."""
    onnx: OnnxInput = field(default_factory=OnnxInput)


def parse_settings(arguments: list[str]) -> EvaluationConfig:
    """Settings from `--name value`, of which LISTS take several values. Raises UserError (shared)."""
    parser = make_parser("Evaluate a model by the field's protocols.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(EvaluationConfig, skip=set(LISTS))
    about = {field.arg_name: field.description for field in docstring_parser.parse_from_object(EvaluationConfig).params}
    for name in LISTS:
        parser.add_argument(f"--{name}", nargs="+", type=str, default=[], help=about[name])
    return read_settings(parser, EvaluationConfig, arguments)
