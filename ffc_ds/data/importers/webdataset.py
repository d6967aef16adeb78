"""WebDataset tars of NAME.jpg and NAME.cls, on disk or in a dataset repository of the hub."""

import fnmatch
import glob
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import huggingface_hub

from ffc_ds.data.importers.plan import Broken, Plan, Record, parse_label, printable
from ffc_ds.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
TARS = (".tar", ".tar.gz", ".tgz")
BLOCK = 512  # bytes; a tar consists of such, and ends in empty ones


def plan_webdataset(source: str) -> Plan:
    """Plan the import of WebDataset tars, each of which becomes one parquet file.

    Args:
        source: folder of tars, a pattern such as 'FOLDER/train-*.tar', or a dataset on the hub as OWNER/NAME or, for
            some of its tars, 'OWNER/NAME/train-*.tar'. Tars that count identities anew must be imported apart.
    """
    if Path(source).is_dir():
        tars = sorted(path for path in Path(source).iterdir() if path.name.endswith(TARS))
    else:
        tars = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    if tars:
        sizes = {str(tar.resolve()): tar.stat().st_size for tar in tars}
        return Plan({"tars": sizes}, [partial(read_tar, tar, tar.name) for tar in tars])
    owner, _, rest = source.partition("/")
    name, _, pattern = rest.partition("/")
    if Path(source).exists() or not name or source.startswith((".", "/")) or "*" in owner + name:
        raise UserError(f"there is no tar at {source}: give a folder of tars, a pattern in quotes, or OWNER/NAME")
    return _plan_hub(f"{owner}/{name}", pattern or "*")


def read_tar(path: Path, name: str) -> Iterator[Record | Broken]:
    """The images of one tar, which is called `name` in their keys. Raises UserError if it has no NAME.cls at all."""
    with_label = False
    for key, group in groupby(_files(path, name), key=itemgetter(0)):
        files = list(group)
        if isinstance(files[0], Broken):
            yield files[0]
            return
        contents = {ending: content for _, ending, content in files}
        with_label |= "cls" in contents
        yield _record(key, contents)
    if not with_label:
        raise UserError(f"tar {name} holds no .cls file, which gives the label of an image: {path} is of another kind")


def _files(path: Path, name: str) -> Iterator[tuple[str, str, bytes] | Broken]:
    """Key, ending and content of each file. A key ends at the first dot after the last slash, as WebDataset has it."""
    key = "its start"
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # would otherwise grow with the tar
                if member.isfile():
                    folder, slash, file = member.name.rpartition("/")
                    stem, _, ending = file.partition(".")
                    key = printable(f"{name}/{folder}{slash}{stem}")
                    yield key, ending.lower(), tar.extractfile(member).read()
            # tarfile takes a damaged header for the end of the archive.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("no end of archive where one was expected")
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield Broken(f"{name} after {key}", f"the tar is damaged, its rest is lost ({error})")


def _record(key: str, contents: dict[str, bytes]) -> Record | Broken:
    image = next((contents[ending] for ending in IMAGES if ending in contents), None)
    if image is None or "cls" not in contents:
        return Broken(key, f"there is no .{'/'.join(IMAGES) if image is None else 'cls'} of it")
    try:
        label = parse_label(contents["cls"])
    except ValueError as error:
        return Broken(key, str(error))
    return Record(key, image, label, str(label))


def _plan_hub(repo: str, pattern: str) -> Plan:
    try:
        info = huggingface_hub.HfApi().dataset_info(repo)
    except Exception as error:  # the HTTP client's own kinds of error change with its version
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"no folder {repo} here, and no dataset of that name on the hub ({reason})") from error
    files = [file.rfilename for file in info.siblings if file.rfilename.endswith(TARS)]
    tars = sorted(fnmatch.filter(files, pattern))
    if not tars:
        if files:
            raise UserError(f"none of the {len(files)} tars of dataset {repo} on the hub is called {pattern}")
        raise UserError(f"dataset {repo} on the hub holds no tar: it can be used as it is if load_dataset opens it")
    about = {"hub": repo, "revision": info.sha, "tars": len(tars), "pattern": pattern}
    return Plan(about, [partial(_read_hub_tar, repo, info.sha, tar) for tar in tars])


def _read_hub_tar(repo: str, revision: str, tar: str) -> Iterator[Record | Broken]:
    """Download one tar, read it, and remove it: the disk never holds more than one for each worker."""
    huggingface_hub.utils.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = huggingface_hub.hf_hub_download(repo, tar, repo_type="dataset", revision=revision, local_dir=folder)
        except Exception as error:  # as above
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{tar} of {repo} cannot be downloaded ({reason}): the same command goes on later"
            ) from error
        yield from read_tar(Path(path), tar)
