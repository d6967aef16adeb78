"""WebDataset tars of NAME.jpg and NAME.cls, on disk or in a dataset repository of the hub."""

import fnmatch
import glob
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path

import huggingface_hub

from ffc_ds.data.failing_disk import is_failing
from ffc_ds.data.file_kind import file_kind
from ffc_ds.data.importers import tar_files
from ffc_ds.data.importers.plan import Broken, Plan, Record, check_size, content_of, parse_label, printable
from ffc_ds.data.importers.tar_files import File
from ffc_ds.errors import UserError

IMAGES = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff")  # the first one is taken
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST_LABEL = 1 << 20  # bytes
SHOWN = 10  # keys of a JSON file


def plan_webdataset(source: str, label: str = "cls") -> Plan:
    """Plan the import of WebDataset tars, each of which becomes one parquet file.

    Args:
        source: folder of tars, a pattern such as 'FOLDER/train-*.tar', or a dataset on the hub as OWNER/NAME or, for
            some of its tars, 'OWNER/NAME/train-*.tar'. Tars that count identities anew must be imported apart.
        label: ending of the files that hold the label, a whole number from 0, or json:KEY for an entry of NAME.json.
    """
    if Path(source).is_dir():
        tars = sorted(path for path in Path(source).iterdir() if _is_tar(path.name))
    else:
        tars = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    if tars:
        about = {"tars": [str(tar.resolve()) for tar in tars], "label": label, "content": content_of(tars)}
        return Plan(about, [partial(read_tar, tar, tar.name, label) for tar in tars])
    owner, _, rest = source.partition("/")
    name, _, pattern = rest.partition("/")
    if Path(source).exists() or not name or source.startswith((".", "/")) or "*" in owner + name:
        raise UserError(f"there is no tar at {source}: give a folder of tars, a pattern in quotes, or OWNER/NAME")
    return _plan_hub(f"{owner}/{name}", pattern or "*", label)


def read_tar(path: Path, name: str, label: str = "cls") -> Iterator[Record | Broken]:
    """The images of one tar, which is called `name` in their keys. Takes about 1 kB of memory for each file in it.

    A first pass finds the files and reads the labels, so that those of a sample need not be neighbours; a second one
    reads the images. Raises UserError if the tar holds no label at all.
    """
    files, labels, last, damage = {}, {}, "its start", None
    ending, _, entry = label.partition(":")
    try:
        with tarfile.open(path, tarinfo=tar_files.BoundedHeader) as tar:
            try:
                for file in tar_files.files_of(tar):
                    last = file.name
                    if (file.name, file.ending) in files and file.ending in (ending, *IMAGES):
                        reason = f"its .{file.ending} is there twice: the later one is taken"
                        yield Broken(printable(f"{name}/{file.name}"), reason)
                    files[file.name, file.ending] = file
                    if file.ending == ending:
                        labels[file.name] = _label(tar, file, entry)
            except tar_files.DAMAGE as error:
                if is_failing(error):
                    raise
                damage = error
            if not (labels or damage):
                raise UserError(_no_label(tar, files, name, label))
            for key, picture in _samples(files, labels, ending):
                yield _record(tar, printable(f"{name}/{key}"), picture, labels.get(key))
    except tar_files.DAMAGE as error:
        if is_failing(error):
            raise
        damage = f"it is {file_kind(path) or 'of an unknown kind'}"
    if damage:
        yield Broken(printable(f"{name} after {last}"), f"the tar is damaged, its rest is lost ({damage})")


def _samples(files: dict[tuple[str, str], File], labels: dict, ending: str) -> list[tuple[str, File | str]]:
    """Key of each sample, which is the name of its label if it has one, and its picture, or why there is none.

    A picture NAME.jpg has the label NAME.cls, whatever dots are in the name. As WebDataset has it, a key ends at the
    first dot after the last slash, so that the label KEY.cls is one of KEY.rgb.jpg if there is no KEY.jpg.
    """
    pictures = {}
    for (name, kind), file in files.items():
        if kind in IMAGES and (name not in pictures or IMAGES.index(kind) < IMAGES.index(pictures[name].ending)):
            pictures[name] = file
    claims = {name: [] for name in labels}
    for name in pictures:
        folder, slash, base = name.rpartition("/")
        claims.setdefault(name if name in labels else folder + slash + base.partition(".")[0], []).append(name)
    found = []
    for key, names in claims.items():
        if key not in labels:
            found += [(name, f"there is no .{ending} of it", pictures[name].offset) for name in names]
            continue
        of_it = [key] if key in names else names  # others beside KEY.jpg, such as KEY.mask.png, are not its photograph
        if len(of_it) == 1:
            found.append((key, pictures[of_it[0]], pictures[of_it[0]].offset))
            continue
        there = f"are several pictures of it: {', '.join(of_it)}" if of_it else f"is no .{'/'.join(IMAGES)} of it"
        found.append((key, f"there {there}", files[key, ending].offset))
    return [(key, picture) for key, picture, _ in sorted(found, key=itemgetter(2))]


def _record(tar: tarfile.TarFile, key: str, picture: File | str, label: int | ValueError) -> Record | Broken:
    try:
        if isinstance(picture, str):
            raise ValueError(picture)
        if isinstance(label, ValueError):
            raise label
        check_size(picture.size)
        return Record(key, tar_files.read(tar, picture), label, str(label))
    except tar_files.DAMAGE as error:
        if is_failing(error):
            raise
        return Broken(key, str(error))


def _label(tar: tarfile.TarFile, file: File, entry: str) -> int | ValueError:
    """The number that a file holds, or an entry of it; or what is wrong with it."""
    try:
        if file.size > LARGEST_LABEL:
            raise ValueError(f"its .{file.ending} has {file.size:,} bytes, which is no label")
        content = tar_files.read(tar, file)
        if not entry:
            return parse_label(content)
        entries = json.loads(content)
        if not isinstance(entries, dict) or entry not in entries:
            raise ValueError(f"its .{file.ending} has no {entry!r}")
        return parse_label(str(entries[entry]))
    except (*tar_files.DAMAGE, RecursionError) as error:
        if is_failing(error):
            raise
        return ValueError(str(error))


def _no_label(tar: tarfile.TarFile, files: dict[tuple[str, str], File], name: str, label: str) -> str:
    endings = ", ".join(sorted({f".{ending}" for _, ending in files})[:SHOWN]) or "nothing"
    text = f"tar {name} holds no .{label.partition(':')[0]} file, which gives the label of an image, but {endings}"
    first = next((file for (_, ending), file in files.items() if ending == "json"), None)
    if first and first.size <= LARGEST_LABEL:
        with suppress(*tar_files.DAMAGE, RecursionError):
            entries = dict(json.loads(tar_files.read(tar, first)))
            text += f"; the entries of a .json are {', '.join(map(str, list(entries)[:SHOWN]))}"
    return f"{text}: --label names another ending, or an entry of a .json as json:KEY"


def _is_tar(path: str) -> bool:
    return path.lower().endswith(TARS) and not path.rpartition("/")[2].startswith(".")


def _plan_hub(repo: str, pattern: str, label: str) -> Plan:
    try:
        info = huggingface_hub.HfApi().dataset_info(repo)
    except Exception as error:  # the HTTP client's own kinds of error change with its version
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"no folder {repo} here, and no dataset of that name on the hub ({reason})") from error
    files = [file.rfilename for file in info.siblings if _is_tar(file.rfilename)]
    tars = sorted(fnmatch.filter(files, pattern))
    if not tars:
        if files:
            raise UserError(f"none of the {len(files)} tars of dataset {repo} on the hub is called {pattern}")
        raise UserError(f"dataset {repo} on the hub holds no tar: it can be used as it is if load_dataset opens it")
    about = {"hub": repo, "revision": info.sha, "tars": len(tars), "pattern": pattern, "label": label}
    return Plan(about, [partial(_read_hub_tar, repo, info.sha, tar, label) for tar in tars])


def _read_hub_tar(repo: str, revision: str, tar: str, label: str) -> Iterator[Record | Broken]:
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
        yield from read_tar(Path(path), tar, label)
