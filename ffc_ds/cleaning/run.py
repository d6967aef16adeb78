"""From a folder of embeddings to a folder of proposals."""

import json
import shutil
import socket
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ffc_ds.cleaning.pictures import draw_proposals
from ffc_ds.cleaning.proposals import Proposals, Set, find_proposals
from ffc_ds.cleaning.settings import CleaningConfig
from ffc_ds.cleaning.vectors import Embeddings
from ffc_ds.data.faces import Faces
from ffc_ds.data.opening import load_faces
from ffc_ds.distributed import broadcast_object, first_rank_first, join_launcher, rank, this_host, together
from ffc_ds.errors import UserError
from ffc_ds.files import written_aside
from ffc_ds.progress import say

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75)
# What embeddings say they were made of that may differ where they are compared.
OF_A_SET = {"content", "images", "image_column", "flip", "dtype", "file_images", "max_megapixels"}


def clean(config: CleaningConfig) -> None:
    """Write proposals.parquet, summary.json and, where pictures can be had, proposals.png to `config.output_dir`.

    All ranks of the launcher search together, or this process alone. Vectors lie in files below the output folder that
    all ranks map, so they are on one host; each process takes some 50 bytes of memory an image beside its blocks.

    Raises UserError (shared) for what cannot be used.
    """
    device = join_launcher()
    _check_one_host()
    begin, target = time.monotonic(), Path(config.output_dir)
    faces = None
    if config.data is not None:
        columns = config.image_column, config.label_column
        faces = first_rank_first(lambda: load_faces(config.data, config.split, *columns, config.data_config))
    with ExitStack() as stack:
        scratch = together(lambda: _scratch(stack, target))
        embeddings = Embeddings(config.embeddings, scratch / "embeddings")
        together(lambda: _check_data(embeddings, faces))
        of, against = Set.read(embeddings, config.belongs, scratch / "centers", device), None
        if config.against is not None:
            others = Embeddings(config.against, scratch / "other_embeddings")
            together(lambda: _check_comparable(embeddings, others))
            against = Set.read(others, config.belongs, scratch / "other_centers", device)
        found = list(find_proposals(config, of, against, scratch, device))
        together(lambda: _write(config, of, against, found, faces, scratch, begin) if rank() == 0 else None)


def _check_one_host() -> None:
    """What a rank writes to a mapped file reaches those of its own host alone."""
    first, own = broadcast_object(this_host()), this_host()

    def check() -> None:
        if own != first:
            raise UserError(
                f"rank {rank()} is on {socket.gethostname()}, which is not the host of rank 0: clean.py works on one "
                "host, with all of its GPUs or cores"
            )

    together(check)


def _scratch(stack: ExitStack, target: Path) -> Path:
    """A folder for files that are of use until the end, in the output folder to be."""
    if rank() == 0:
        (stack.enter_context(written_aside(target)) / "scratch").mkdir(parents=True)
    return target.with_name(f".{target.name}.unfinished") / "scratch"


def _check_data(embeddings: Embeddings, faces: Faces | None) -> None:
    content = (embeddings.about or {}).get("content")
    if faces is not None and content is not None and content != faces.fingerprint:
        raise UserError(f"{embeddings.folder} was made of other data than {faces.name}: give what embed.py was given")


def _check_comparable(embeddings: Embeddings, others: Embeddings) -> None:
    if embeddings.dim != others.dim:
        raise UserError(
            f"embeddings of {embeddings.folder} have {embeddings.dim} numbers, those of {others.folder} {others.dim}: "
            "embed both sets with one model"
        )
    if embeddings.about is None or others.about is None:
        return
    one, other = embeddings.about, others.about
    if differing := [key for key in one | other if key not in OF_A_SET and one.get(key) != other.get(key)]:
        what = "two models" if "weights" in differing else f"one model in two ways ({', '.join(differing)})"
        raise UserError(f"{embeddings.folder} and {others.folder} are of {what}: embed both sets alike")


def _write(
    config: CleaningConfig,
    of: Set,
    against: Set | None,
    found: list[Proposals],
    faces: Faces | None,
    scratch: Path,
    begin: float,
) -> None:
    folder, embeddings = scratch.parent, of.embeddings
    tables = {each.kind: each.table(of, against if each.kind == "overlap" else of) for each in found}
    pq.write_table(pa.concat_tables(tables.values()), folder / "proposals.parquet")
    drawn = draw_proposals(tables, faces, config.pictures, folder / "proposals.png")
    known = of.centers.own[~np.isnan(of.centers.own)]
    cosines = {f"{share:g}": round(float(np.quantile(known, share)), 4) for share in QUANTILES} if len(known) else {}
    summary = {
        "images": len(embeddings),
        "identities": embeddings.index.identities,
        "proposals": {kind: len(table) for kind, table in tables.items()},
        "cosine with the own center, quantiles": cosines,
        "settings": asdict(config),
        "seconds": round(time.monotonic() - begin, 1),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    shutil.rmtree(scratch, ignore_errors=True)  # NFS keeps files that others still map, and the results shall stay
    shown = ", ".join(f"{value:.2f} ({float(share):.0%})" for share, value in cosines.items())
    say(f"{len(embeddings):,} images of {embeddings.index.identities:,} identities")
    say(f"cosine with the center of the others of its identity (share of images below): {shown}")
    for kind, table in tables.items():
        say(f"{kind:<12} {len(table):,}")
    wanted = config.pictures and any(map(len, tables.values()))
    without = ", without pictures: --data says where the images are" if wanted and not drawn else ""
    say(f"proposals in {config.output_dir}{without}")
