"""The settings of `launch/embed.py`."""

from dataclasses import dataclass, field
from typing import Literal

from ffc_ds.config.command_line import make_parser, read_settings
from ffc_ds.config.paths import PathName
from ffc_ds.data.bounds import MAX_MEGAPIXELS, check_max_megapixels
from ffc_ds.encoders.onnx_input import OnnxInput
from ffc_ds.errors import shared


@dataclass
class EmbeddingConfig:
    """What to embed, and with which model."""

    data: PathName
    """A set of images as for data.train: a name on the hub, a folder of parquet files or of images, generated:..."""
    model: PathName
    """Folder of a backbone (RUN_DIR/model, or RUN_DIR), or its name on the hub; an ONNX file; a model pack of
    InsightFace, such as the folder buffalo_l."""
    output_dir: PathName
    """Folder to write, a new one or that of the same command interrupted."""
    split: str = "train"
    """Which split of the set, or part of one, such as train[:1000]."""
    data_config: str | None = None
    """Which configuration of the set, where there are several."""
    image_column: str = "image"
    """Column with the images or their encoded bytes."""
    label_column: str = "label"
    """Column with the identities."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the embeddings, which are scaled to length 1."""
    flip: bool = False
    """Add the features of an image and of its mirror image, as evaluate.py does; takes twice as long."""
    batch_size: int = 64
    """Images per rank and forward."""
    workers: int = 2
    """Threads per rank that read and decode images."""
    file_images: int = 16384
    """Images of a file. A stopped command repeats at most one file on each rank."""
    max_megapixels: float = MAX_MEGAPIXELS
    """An image whose header announces more counts as damaged, before it is decoded; at most 178."""
    onnx: OnnxInput = field(default_factory=OnnxInput)


def parse_settings(arguments: list[str]) -> EmbeddingConfig:
    """Settings from `--name value`. Raises UserError (shared)."""
    parser = make_parser("Embed a set of images into parquet files.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(EmbeddingConfig)
    config = read_settings(parser, EmbeddingConfig, arguments)
    for name in ("batch_size", "workers", "file_images"):
        if getattr(config, name) < 1:
            raise shared(f"{name} is {getattr(config, name)}; it must be 1 or more.")
    check_max_megapixels(config.max_megapixels)
    return config
