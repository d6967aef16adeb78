"""All ranks train the same: what differs from host to host would have them wait for each other, or learn other things.

Before the data is opened, and again when it is, ranks compare what they were given with rank 0; in training, at each
line of the log, what they have made of it.
"""

from dataclasses import asdict
from pathlib import Path

from xxhash import xxh3_64

import ffc_ds
from ffc_ds.config.comparison import PATHS, flat
from ffc_ds.config.ds_config import read_ds_config
from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.distributed import broadcast_object, check_same, first_on_host, same_everywhere
from ffc_ds.heads.base import Head
from ffc_ds.models.hub_source import PREFIX
from ffc_ds.training.engine import Engine
from ffc_ds.training.report import versions

OWN = {"device"}  # not every host of a cluster has the same


def check_same_start(config: Config) -> None:
    """Raise UserError on all ranks, with both values, if settings, ds_config or versions of a rank are not those of
    rank 0."""
    settings = {key: value for key, value in flat(asdict(config)).items() if key not in PATHS}
    if config.model.name.startswith(PREFIX):  # a path, too; `start_from_weights` compares what lies there
        settings["model.name"] = PREFIX
    told = {f"{key} in the file of deepspeed": value for key, value in flat(read_ds_config(config.deepspeed)).items()}
    made = {f"the version of {name}": value for name, value in versions().items() if name not in OWN}
    made["a digest of ffc_ds's own code"] = _digest_of_code()
    check_same(settings | told | made, "start all ranks with the same settings and in the same environment")


def _digest_of_code() -> str:
    digest, package = xxh3_64(), Path(ffc_ds.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def agreed_identities(index: IdentityIndex) -> str:
    """A digest of the identities and their images. Raises UserError on all ranks if a host has opened others."""
    own = index.digest() if first_on_host() else None
    wanted = broadcast_object(own)
    check_same({"the digest of identities and their images": own or wanted}, "give all hosts the same data")
    return wanted


def check_same_state(engine: Engine, head: Head, done: int) -> None:
    """Raise UserError on all ranks if, after `done` steps, the class state or the backbone of one is not that of the
    others: nothing of the run can be trusted from there on."""
    same_everywhere(head.checksum(), f"the class state after step {done}")
    same_everywhere(engine.checksum(), f"the weights of the backbone after step {done}")
