"""What must be the same for a checkpoint to be of a run."""

from dataclasses import asdict

from ffc_ds.config.ds_config import read_ds_config
from ffc_ds.config.heads import ANY, LEARNT, ONLY_FOR
from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.models.hub_source import PREFIX, encoder_digest
from ffc_ds.training.engine import Engine

DRAWN = ("min_images", "batch_size", "id_share", "images_per_identity")
AUGMENTED = ("shift", "crop", "erase", "low_resolution", "blur", "grey", "colour")
BEGINNING = ("weights", "init")  # a checkpoint is beyond it
STARTED_FROM = {"weights", "weights_missing"}  # a checkpoint has weights of its own


def identity_of(config: Config, engine: Engine, index: IdentityIndex, people: str) -> dict:
    """Model, head, optimiser, data and seed of a run, by the names of the settings that count for it (JSON).

    people: a digest of the identities' names.
    """
    model = {f"model.{key}": value for key, value in asdict(config.model).items() if key not in STARTED_FROM}
    if not config.model.freeze:
        del model["model.freeze"]  # as in checkpoints from before there was such a thing
    if config.model.name.startswith(PREFIX):  # where it lies does not count
        model["model.name"] = f"{PREFIX} {encoder_digest(engine.module.config)}"
    read = {key: value for key, value in asdict(config.head).items() if config.head.name in ONLY_FOR.get(key, ANY)}
    head = {f"head.{key}": value for key, value in read.items() if key not in ("workspace_mb", *BEGINNING)}
    data = {f"data.{key}": getattr(config.data, key) for key in DRAWN + AUGMENTED} | {"data.loader": config.loader}
    if not config.data.flip:
        data["data.flip"] = False  # left out while true, as freeze
    optim = {f"optim.{key}": getattr(config.optim, key) for key in ("name", "momentum", "weight_decay")}
    optim["optimizer"] = engine.optimizer_name  # a ds_config may bring its own
    params = read_ds_config(config.deepspeed).get("optimizer", {}).get("params", {})
    if told := {key: value for key, value in params.items() if key != "lr"}:
        optim["optimizer.params"] = told
    optim["train.average"] = config.train.average
    if config.head.name in LEARNT:
        optim |= {f"class_optim.{key}": value for key, value in asdict(config.class_optim).items() if key != "memory"}
    count = {"identities": index.identities, "images": len(index.images), "people": people}
    return model | head | data | optim | count | {"seed": config.seed}
