"""What must be the same for a checkpoint to be of a run."""

from dataclasses import asdict

from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.training.engine import Engine

DRAWN = ("min_images", "batch_size", "id_share", "images_per_identity")
AUGMENTED = ("shift", "crop", "erase", "low_resolution", "blur", "grey", "colour")


def identity_of(config: Config, engine: Engine, index: IdentityIndex, people: str) -> dict:
    """Model, head, optimiser, data and seed of a run, by the names of their settings (JSON).

    people: a digest of the identities' names.
    """
    model = {f"model.{key}": value for key, value in asdict(config.model).items()}
    head = {f"head.{key}": value for key, value in asdict(config.head).items() if key != "workspace_mb"}
    data = {f"data.{key}": getattr(config.data, key) for key in DRAWN + AUGMENTED} | {"data.loader": config.loader}
    optim = {f"optim.{key}": getattr(config.optim, key) for key in ("name", "momentum", "weight_decay")}
    optim["optimizer"] = engine.optimizer_name  # a ds_config may bring its own
    optim["train.average"] = config.train.average
    optim |= {f"class_optim.{key}": value for key, value in asdict(config.class_optim).items() if key != "memory"}
    count = {"identities": index.identities, "images": len(index.images), "people": people}
    return model | head | data | optim | count | {"seed": config.seed, "dtype": str(engine.dtype)}
