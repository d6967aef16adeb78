"""All settings of a run: one dataclass per concern, filled from a YAML file and then from the command line."""

from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from ffc_ds.config.command_line import as_written, make_parser, refusals
from ffc_ds.config.ds_config import read_ds_config, usual_ds_config
from ffc_ds.config.heads import unread
from ffc_ds.config.keys import LINE, in_order, known_keys
from ffc_ds.config.paths import PathName, expand_paths, expanded, find_file
from ffc_ds.config.values import check_values
from ffc_ds.data.bounds import MAX_MEGAPIXELS
from ffc_ds.errors import UserError
from ffc_ds.progress import say_once

MarginName = Literal[
    *("am", "arc", "sv", "combined", "adaface", "curricular", "magface", "sphereface", "sphereface_r"),
    *("elastic_arc", "elastic_arc_plus", "elastic_cos", "elastic_cos_plus"),
]


@dataclass
class DataConfig:
    """Where images come from and how they are drawn."""

    train: list[PathName] | PathName | None = None
    """Hub name, folder of parquet files, image folder, or generated:IDENTITIES:PIXELS (and :MEAN images a person); or a
    list, [A, B], of sets that have no identity in common: each keeps its own labels."""
    split: str = "train"
    """Split to train on, or a part of it such as train[:50%], or several, train+validation."""
    config: str | None = None
    """Which configuration of the dataset (the hub calls it a subset), where it has several."""
    min_images: int = 1
    """Identities with fewer images are left out."""
    image_column: str = "image"
    """Column with the images."""
    label_column: str = "label"
    """Column with the identity of each image: integers from 0, or names."""
    loader: Literal["auto", "dual", "id", "instance"] = "auto"
    """What fills the batches: two images of each identity (id), single images (instance), or both (dual); auto is what
    suits the head: instance for ffc, full_fc and partial_fc, dual for ffc with head.pool lru, id for the others."""
    batch_size: int = 192
    """Images of one optimizer step: over both views, all ranks and all accumulated micro-batches."""
    id_share: float = 2 / 3
    """Share of a dual batch that the id loader fills; the published one is 64 pairs to 64 images."""
    images_per_identity: int = 2
    """Images of each identity that the id loader draws for a step, an even number."""
    flip: bool = True
    """The mirror image of an image shows the same identity: images are mirrored at random, and a verification adds the
    features of both. False where it is another one, as with writing."""
    shift: int = 0
    """Images are moved by up to this many pixels in each direction; 0 leaves them where they are."""
    crop: float = 0.0
    """Images are seen through a square window somewhere inside, whose side is shorter than theirs by up to this share,
    uniformly; 0.1 enlarges them by up to a ninth."""
    erase: float = 0.0
    """Share of the images on which a rectangle of 2 to 40 % of the area, sides up to 10:3, takes a random colour."""
    low_resolution: float = 0.0
    """Share of the images that are scaled down, to a fifth of their side at most, and up again."""
    blur: float = 0.0
    """Share of the images that are blurred."""
    grey: float = 0.0
    """Share of the images that lose their colours."""
    colour: float = 0.0
    """Share of the images whose brightness, contrast and saturation are changed."""
    workers: int = 1
    """Processes per rank that read and decode images; 0 does it in the training process."""
    max_megapixels: float = MAX_MEGAPIXELS
    """An image whose header announces more counts as damaged, before it is decoded; at most 178."""
    max_replaced: float = 0.01
    """Share of the images seen so far that may have been replaced, because they could not be read or decoded; with more
    the run ends. Judged with each line of metrics (train.log_every)."""


@dataclass
class ModelConfig:
    """The backbone."""

    name: str = "iresnet50"
    """iresnet18, 34, 50, 100 or 200, mobilefacenet, vit; or hub:OWNER/NAME or hub:FOLDER, a vision encoder of
    transformers with its weights, under an embedding layer."""
    image_size: int = 112
    """Side of the square input in pixels; images of another size are resized. Where it is not given, an encoder of the
    hub has the size of its own image processor."""
    embedding_size: int = 512
    """Length of the embedding."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Further settings of the backbone's own config class, such as {width: 0.5} for an iresnet."""
    weights: PathName | None = None
    """What the backbone starts from: a run, one of its checkpoints, what export.py wrote or its name on the hub, or
    InsightFace's backbone.pth. A run that is resumed does not read it again."""
    weights_missing: Literal["refuse", "initialise"] = "refuse"
    """Where weights do not fit by name and shape: refuse, or initialise what has none and leave out what is too much;
    position embeddings are then interpolated."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that stay as they are, by patterns of their names such as [conv1.*, layer1.*]; a batch normalisation
    whose parameters all do keeps its running statistics."""


@dataclass
class HeadConfig:
    """The loss over identities and the class state it keeps."""

    name: Literal["ffc", "full_fc", "partial_fc", "virtual_fc", "metric"] = "ffc"
    """Which system: a dynamic class pool (ffc), one weight vector an identity (full_fc), the same with a random share
    of them trained each step (partial_fc), one vector for a group of identities (virtual_fc), or none (metric)."""
    weights: PathName | None = None
    """full_fc, partial_fc, ffc with pool drawn: begin with the classes of an earlier run (its folder, or one of its
    checkpoints), found by the names of their identities; those that are not there begin as head.init says."""
    init: Literal["random", "features"] = "random"
    """full_fc, partial_fc, ffc with pool drawn: classes begin with random weights (ffc: as head.prefill says), or with
    the mean feature of the images of their identity, by one pass of the net before training."""
    margin: MarginName = "am"
    """Margin on the target cosine: AM-Softmax / CosFace, ArcFace, SV-AM-Softmax, ArcFace's combination, AdaFace,
    CurricularFace, MagFace, SphereFace, SphereFace-R, or one of ElasticFace's; docs/heads/margins.md has them all. ffc
    with pool lru takes am, arc, sv, combined and sphereface."""
    margin_strength: float | None = None
    """Strength of the margin, m; by default the published one (am, sv, adaface 0.4; arc, curricular, elastic_arc 0.5;
    elastic_cos 0.35; sphereface 1.7, sphereface_r 1.4). magface and combined have their own settings."""
    combined: list[float] = field(default_factory=lambda: [1.0, 0.3, 0.2])
    """combined: m1, m2 and m3 of cos(m1 theta + m2) - m3."""
    straight_through: bool = False
    """arc, combined: the gradient passes by the margin, as in the released Partial FC; otherwise it is the true one."""
    m3_alone: bool = False
    """combined: an m3 above 0 switches m1 and m2 off, as in the released Partial FC."""
    adaface_h: float | None = None
    """adaface: how much the length of an embedding counts, h; by default 0.333."""
    adaface_t_alpha: float | None = None
    """adaface: weight of a batch in the running mean and deviation of the lengths; by default 0.01."""
    magface_bounds: list[float] | None = None
    """magface: lengths between which margin and regulariser change, l_a and u_a; by default [10, 110]."""
    magface_margins: list[float] | None = None
    """magface: margins at these lengths; by default [0.45, 0.8]."""
    magface_lambda_g: float | None = None
    """magface: factor on the regulariser, which rewards long embeddings; by default 35."""
    magface_form: Literal["easy", "guarded", "cosine"] | None = None
    """magface: margin on the angle where its cosine is above 0 (easy, the default), or up to pi - margin (guarded), or
    on the cosine."""
    sphereface_lw: float | None = None
    """sphereface_r: the loss is multiplied by this and divided by the scale; by default 50."""
    sphereface_version: Literal[0, 1, 2] | None = None
    """sphereface_r: which characteristic functions of its paper, v2 (the default), v1, or v0, that of sphereface."""
    elastic_std: float | None = None
    """elastic_*: deviation of the margins; by default 0.05, 0.0175 for elastic_arc_plus, 0.025 for elastic_cos_plus."""
    sub_centers: int = 1
    """full_fc, partial_fc: weight vectors of each identity, of which the nearest to an image counts (sub-center ArcFace
    is 3 with head.margin arc)."""
    interclass_filter: float = 0.0
    """All but metric and lru: other classes nearer than this cosine are left out of the softmax (they may be the same
    person under another name); 0 leaves out none."""
    scale: float | None = None
    """Factor on the cosines before the softmax; by default 32 for ffc, 30 for sphereface and sphereface_r, else 64."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the class state and, where the device is faster in it, of the products with it; sums and statistics are
    float32 in any case."""
    workspace_mb: int = 256
    """Memory for logits on each rank: they are worked on in blocks, however many classes there are, and kept from the
    loss to the update of the class weights if all of them fit."""
    sample_rate: float = 0.1
    """partial_fc: share of the classes that a step compares with and trains, beside those of its images."""
    group_identities: int = 100
    """virtual_fc: identities that share an anchor."""
    metric_loss: Literal["triplet", "npair", "multi_similarity"] = "multi_similarity"
    """metric: which loss over the pairs or triplets of a batch."""
    pool: Literal["drawn", "lru"] = "drawn"
    """ffc: drawn keeps a class center for every identity, written by the gallery net, and each step compares with those
    of its images and a random share of the others; lru is the pool of the paper, which knows the latest identities."""
    pool_size: float = 0.1
    """ffc: class centers that a step compares with (drawn), or slots of the pool (lru); up to 1 a share of the
    identities, above it a number."""
    center_momentum: float | Literal["auto"] = "auto"
    """ffc, drawn: m in center <- m * center + (1 - m) * feature, as a unit vector, after a step that shows an identity,
    but 0 for one that has no feature yet; auto, with the instance loader: 0.5 for an identity of up to three images,
    (n - 1) / (n + 1) for one of n, which is an average that spans an epoch, and in the first epoch n are those that it
    has shown so far; 0.5 with the others."""
    group_size: int = 3
    """ffc, lru: features kept for each slot (K); the released code keeps 2."""
    gallery_momentum: float = 0.0
    """ffc: a second net, the gallery, makes the features for the class centers, and follows the probe net by gallery <-
    m * gallery + (1 - m) * probe, once a step (0.99 in the paper); with 0 the probe net makes them itself."""
    prefill: float = 1.0
    """ffc: share of the identities (lru: at most as many as there are slots) whose centers the gallery net writes
    before training, from one image each."""
    fresh_weight: float = 1.0
    """ffc, lru: factor on the term that pushes identities outside the pool from their nearest centers."""
    loss_terms: Literal["mean", "sum"] = "mean"
    """ffc, lru: the loss is the mean over both passes and all K matrices, so that a learning rate means what it does
    for the other heads, or, as in the released code, their sum, 2 K times as much."""
    hide_unfilled: bool = True
    """ffc, lru: slots that hold nobody are no negatives. The released code counts them, with random features."""
    own_rows_only: bool = True
    """ffc, lru: row k of a slot counts only if its present holder wrote it. The released code does not look."""
    arc_guard: bool = True
    """arc, combined: keeps falling where the angle with its margin exceeds pi. The released codes let it rise."""
    preset: Literal["none", "f2c"] = "none"
    """ffc: f2c is the released code: pool lru, group_size 2, gallery_momentum 0.99, no prefill, hide_unfilled,
    own_rows_only and arc_guard off, loss_terms sum."""


def slots_of_pool(pool_size: float, identities: float) -> int:
    """Slots that a `pool_size`, a share of the identities or a number, stands for."""
    return round(pool_size * identities) if pool_size <= 1 else int(pool_size)


@dataclass
class ClassOptimConfig:
    """How class weights learn (full_fc, partial_fc, virtual_fc); their learning rate follows the schedule of optim."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the class weights."""
    lr_factor: float = 1.0
    """The class weights' learning rate is this many times that of the backbone."""
    momentum: float = 0.9
    """sgd: momentum."""
    weight_decay: float = 5e-4
    """Weight decay; sgd adds it to the gradient, adamw shrinks the weights by it."""
    memory: Literal["device", "host"] = "device"
    """Where momentum or moments lie: beside the weights, or in the host's memory."""


@dataclass
class OptimConfig:
    """How the backbone learns. A ds_config with an optimizer of its own overrules name, momentum and weight_decay."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the backbone."""
    lr: float = 0.1
    """Highest learning rate."""
    backbone_lr_factor: float = 1.0
    """The learning rate of what came from model.weights, or with an encoder of the hub, is this many times that of all
    else."""
    lr_batch: int = 0
    """The data.batch_size that lr is meant for: with another one it changes in proportion, and the run says so. 0: lr
    is meant for any."""
    momentum: float = 0.9
    """sgd: momentum, in Nesterov's form."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: Literal["steps", "cosine", "poly", "constant"] = "steps"
    """Course of the learning rate after the warm-up."""
    power: float = 1.0
    """poly: the learning rate falls to 0 as this power of the share of the run that is left; InsightFace's runs have
    1, a straight line."""
    milestones: list[float] = field(default_factory=lambda: [8 / 19, 14 / 19, 17 / 19])
    """steps: where in the run (0 to 1) the learning rate is divided by ten."""
    warmup: float = 0.0
    """Share of the run in which the learning rate rises from 0."""
    clip: float = 0.0
    """Largest gradient norm, 0 for no clipping."""


@dataclass
class TrainConfig:
    """How long to train and what to keep."""

    epochs: float = 19.0
    """Length of the run: this many times the number of training images."""
    steps: int | None = None
    """Length of the run in optimizer steps; overrules epochs."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    head_only_steps: int = 0
    """So many first steps train the head alone: the backbone stays as it is, with its running statistics."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the nets, and the update of class weights, before the first step, in a minute or two; auto: if the run
    takes 15 minutes or more. Not under ZeRO-3."""
    average: float = 0.0
    """What is verified and handed on is an average of the weights over the last steps: after each one, average <-
    d * average + (1 - d) * weights, with d rising to this, such as 0.999. 0: the last weights themselves."""
    profile: int = 0
    """After five steps rank 0 writes a trace of so many to output_dir/profile, which https://ui.perfetto.dev opens; 0:
    none."""
    log_every: int = 10
    """Steps from one line in metrics.jsonl to the next."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    final_save_minutes: float = 5.0
    """Minutes for which the last checkpoint waits where the disk is full or cannot be written; then the run ends with
    exit code 2. One before it that cannot be written is left out, with a warning, and training goes on."""
    max_refused_steps: int = 20
    """So many steps refused in a row, because loss or gradients are not finite, are a divergence; those do not count in
    which fp16 looks for a loss scale."""
    on_divergence: Literal["stop", "rewind"] = "stop"
    """stop ends the run with exit code 2; rewind goes back to the last checkpoint before, with half the learning rate
    and other batches."""
    max_rewinds: int = 3
    """rewind: how often; after that the run stops."""
    open_timeout: float = 120.0
    """Minutes for opening the data, after which the run ends and says which rank did not come."""
    step_timeout: float = 30.0
    """The same for a step, a batch of a verification, and a checkpoint: well above the slowest."""


@dataclass
class EvalConfig:
    """Pair verification during and after training."""

    bin: PathName | None = None
    """An InsightFace-style .bin file with pairs of images."""
    split: str | None = None
    """Without bin: split of the training dataset whose identities, unseen in training, make the pairs; by default test,
    if there is one that can serve. With that of data.split, some of those that are trained on are held out."""
    holdout: float = 0.1
    """Without bin and without such a split: share of the training identities held out for the pairs; with 0, all are
    trained on and nothing is verified."""
    pairs: int = 3000
    """Number of pairs drawn when there is no bin."""
    every: int = 0
    """Steps from one verification to the next, 0 for only before and after training."""
    batch_size: int = 256
    """Images embedded at once on each rank."""


@dataclass
class TrackingConfig:
    """Weights & Biases; metrics.jsonl is written in any case."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is what WANDB_MODE says, else online if an API key is found, else offline; nothing asks for a key."""
    project: str = "ffc_ds"
    """Project in Weights & Biases."""
    name: str | None = None
    """Name of the run; by default that of the output folder."""


@dataclass
class Config:
    """A run."""

    output_dir: PathName = "runs/ffc"
    """Folder for everything the run writes."""
    deepspeed: PathName = "ds_configs/zero2.json"
    """DeepSpeed's config, from the current folder, beside the file that names it, or in the project; its "auto" values
    are filled in from these settings. auto is ds_configs/bf16.json where the device multiplies bf16 faster than fp32 (a
    GPU since Ampere, a CPU with AMX or AVX512-BF16), otherwise zero2.json."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    resume: PathName | None = None
    """Go on from a checkpoint: latest (of output_dir), auto (latest, or anew if there is none), or a folder."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    class_optim: ClassOptimConfig = field(default_factory=ClassOptimConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def loader(self) -> str:
        """data.loader, or what suits the head."""
        if self.data.loader != "auto":
            return self.data.loader
        return "dual" if self.head.name == "ffc" and self.head.pool == "lru" else LOADERS[self.head.name]


LOADERS = {"ffc": "instance", "full_fc": "instance", "partial_fc": "instance", "virtual_fc": "id", "metric": "id"}
F2C = {
    **{"pool": "lru", "group_size": 2, "gallery_momentum": 0.99, "prefill": 0.0, "loss_terms": "sum"},
    **{"hide_unfilled": False, "own_rows_only": False, "arc_guard": False},
}


def parse_config(arguments: list[str]) -> Config:
    """Settings from `--config FILE` and `--section.key value`, the later winning. Raises UserError (shared)."""
    try:
        return _parse(arguments)
    except UserError as error:
        error.shared = True
        raise


@cache
def _parser() -> ArgumentParser:
    parser = make_parser("Train identity embeddings.")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(Config)
    return parser


def _parse(arguments: list[str]) -> Config:
    parser = _parser()
    parsed, given, typed = parser.get_defaults(), set(), set()
    for where, part in in_order(arguments, known_keys(Config)):
        keys = {key.split("=")[0].removeprefix("--") for key in part}
        given, typed = given | keys, typed | (keys if where == LINE else set())
        with refusals(f"The settings {where} cannot be used"):
            parsed = parser.parse_object(part, parsed) if isinstance(part, dict) else parser.parse_args(part, parsed)
    config = _checked(parsed, given)
    if idle := unread(config.head, typed):  # a file may serve several heads
        pool = f" and head.pool {config.head.pool}" * (config.head.name == "ffc")
        say_once(f"warning: head.name {config.head.name}{pool} does not read {', '.join(idle)}")
    expand_paths(config)
    config.deepspeed = find_file(usual_ds_config() if config.deepspeed == "auto" else config.deepspeed)
    read_ds_config(config.deepspeed)  # a wrong one is found before anything takes time
    if config.model.name.startswith("hub:"):
        _find_encoder(config.model, "model.image_size" in given)
    return config


def _checked(parsed, given: set[str]) -> Config:
    config = Config(**{entry.name: as_written(entry.type, parsed[entry.name]) for entry in fields(Config)})
    _apply_preset(config.head, given)
    check_values(config)
    return config


def head_config(head: dict[str, Any], class_optim: dict[str, Any]) -> tuple[HeadConfig, ClassOptimConfig]:
    """Settings of a head without a run, checked as a run's are. Raises UserError."""
    parser, given = _parser(), {"head": head, "class_optim": class_optim}
    with refusals("The settings of the head cannot be used"):
        parsed = parser.parse_object(given, parser.get_defaults())
    config = _checked(parsed, {f"head.{name}" for name in head})
    return config.head, config.class_optim


def _find_encoder(model: ModelConfig, sized: bool) -> None:
    """Write out where an encoder is, and the size of its images unless that is given."""
    from ffc_ds.models.hub_source import PREFIX, usual_image_size  # takes seconds, and few need it

    model.name = PREFIX + expanded("model.name", model.name.removeprefix(PREFIX))
    if not sized:
        model.image_size = usual_image_size(model.name) or model.image_size


def save_config(config: Config, path: Path) -> None:
    """Write every setting, so that `--config` of the file repeats the run."""
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def _apply_preset(head: HeadConfig, given: set[str]) -> None:
    if head.preset == "f2c" and head.name != "ffc":
        raise UserError(f"head.preset f2c is for head.name ffc, not for {head.name}. Drop one.")
    for name, value in F2C.items() if head.preset == "f2c" else ():
        own = getattr(head, name)
        if own != value and (own != getattr(HeadConfig, name) or f"head.{name}" in given):
            raise UserError(f"head.{name} is {own}, but head.preset f2c stands for {value}. Drop one.")
        setattr(head, name, value)
