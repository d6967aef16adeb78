"""The settings of `launch/clean.py`."""

from dataclasses import dataclass
from typing import Literal, get_args

from ffc_ds.config.command_line import make_parser, read_settings
from ffc_ds.config.paths import PathName
from ffc_ds.errors import shared

Kind = Literal["mislabelled", "stranger", "merge", "duplicate", "overlap"]
KINDS: tuple[str, ...] = get_args(Kind)
MOST_PICTURES = 50  # that matplotlib lays out in seconds
COSINES = ("belongs", "stranger", "same_person", "same_image")


@dataclass
class CleaningConfig:
    """What to look for in which embeddings. Cosines depend on the model: the summary shows how they lie."""

    embeddings: PathName
    """Folder that embed.py wrote."""
    output_dir: PathName
    """New folder to write."""
    against: PathName | None = None
    """Another such folder, of the same model: people who are in both are proposed for removal."""
    find: list[Kind] | None = None
    """What to look for; by default everything, overlap with `against` only. Only duplicates need all pairs."""
    belongs: float = 0.5
    """Least cosine of an image with the center of its identity's other images. One below it, and at least so near to
    another identity's center, is proposed for that one."""
    stranger: float = 0.2
    """An image below this, and below `belongs` with all others, is proposed for removal."""
    same_person: float = 0.7
    """Least cosine of the centers of two identities that are one person."""
    same_image: float = 0.98
    """Least cosine of two images that show the same."""
    data: PathName | None = None
    """The images, as embed.py was given them, for pictures; image folders are found without."""
    split: str = "train"
    """Which split of `data`, as embed.py was given it."""
    data_config: str | None = None
    """Which configuration of `data`, where there are several."""
    image_column: str = "image"
    """Column with the images or their encoded bytes."""
    label_column: str = "label"
    """Column with the identities."""
    pictures: int = 12
    """Of each kind, so many of the clearest proposals are drawn."""


def parse_settings(arguments: list[str]) -> CleaningConfig:
    """Settings from `--name value`. Raises UserError (shared)."""
    parser = make_parser("Find what is wrong in a set of faces by their embeddings.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(CleaningConfig)
    config = read_settings(parser, CleaningConfig, arguments)
    for name in COSINES:
        if not -1 <= getattr(config, name) <= 1:
            raise shared(f"{name} is {getattr(config, name)}; a cosine lies between -1 and 1.")
    if config.stranger > config.belongs:
        raise shared(f"stranger is {config.stranger}, above belongs {config.belongs}: no image could be in between.")
    if not 0 <= config.pictures <= MOST_PICTURES:
        raise shared(f"pictures is {config.pictures}; a row of the figure has 0 to {MOST_PICTURES}.")
    if config.find is None:
        config.find = [kind for kind in KINDS if kind != "overlap" or config.against is not None]
    if not config.find or ("overlap" in config.find) != (config.against is not None):
        raise shared(f"find is {config.find}: name what to look for, and overlap if and only if --against is given.")
    return config
