"""The settings of an evaluation, and how they are read from the command line."""

from dataclasses import dataclass, field

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.errors import shared


@dataclass
class EvaluationConfig:
    """What to evaluate, and on what."""

    model: str
    """Folder of a backbone (RUN_DIR/model, or RUN_DIR), or its name on the hub."""
    output_dir: str
    """Folder to write: results.json, table.md, roc.png, histogram.png, errors.png. It must not exist."""
    pairs: list[str] = field(default_factory=list)
    """Pair sets: InsightFace .bin files, and lists such as LFW's pairs.txt (videos: YTF's splits.txt)."""
    images: str | None = None
    """Folder with the images of the lists of pairs; by default the one each list is in."""
    ijb: list[str] = field(default_factory=list)
    """Folders of IJB-B or IJB-C, each with loose_crop and meta."""
    probes: str | None = None
    """MegaFace-style identification: folder with a folder of images for each person."""
    distractors: str | None = None
    """The images of others that the probes' mates must be told from, in a folder with any folders inside."""
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


def parse_settings(arguments: list[str]) -> EvaluationConfig:
    """Settings from `--name value`, of which `pairs` and `ijb` take several values. Raises UserError (shared)."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, description="Evaluate a backbone by the field's protocols.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(EvaluationConfig, skip={"pairs", "ijb"})
    about = {field.arg_name: field.description for field in docstring_parser.parse_from_object(EvaluationConfig).params}
    for name in ("pairs", "ijb"):
        parser.add_argument(f"--{name}", nargs="+", type=str, default=[], help=about[name])
    try:
        settings = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise shared(f"The settings cannot be used: {error} (--help shows all settings)") from None
    return EvaluationConfig(**{key: value for key, value in settings.items() if key != "local_rank"})
