"""A copy in the cache that was cut off or overwritten is named, not the data that it was made of."""

import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest

from ffc_ds.data.copies import check_cache, check_copies, open_copy
from ffc_ds.errors import UserError

ROWS, PARTS = 40, 4
DAMAGES = {
    "empty": lambda whole: b"",
    "cut in its head": lambda whole: whole[:100],
    "half": lambda whole: whole[: len(whole) // 2],
    "the last bytes": lambda whole: whole[:-3],
    "zeros": lambda whole: bytes(len(whole)),
    "a page for a file": lambda whole: b"<html>not found</html>" * 100,
}


@pytest.fixture
def copy(tmp_path):
    """An Arrow file as `datasets` writes it, of 40 rows in 4 parts."""
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
    path = tmp_path / "copy.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in np.array_split(np.arange(ROWS), PARTS):
            images = [np.random.default_rng(row).bytes(5000) for row in part]
            writer.write_table(pa.table({"image": images, "label": part}, schema=schema))
    return path


def test_a_whole_copy_is_opened(copy):
    assert open_copy(copy, "faces", ROWS)["label"] == list(range(ROWS))
    check_copies([copy], "faces")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_copy_is_to_be_deleted(copy, kind):
    copy.write_bytes(DAMAGES[kind](copy.read_bytes()))
    for check in (lambda: open_copy(copy, "faces", ROWS), lambda: check_copies([copy], "faces")):
        with pytest.raises(UserError, match=f"copy of faces in the cache is cut off or damaged .*: delete {copy},"):
            check()


def test_a_copy_that_lost_rows_is_no_smaller_dataset(copy):
    with open(copy, "r+b") as file:  # zeros say that the stream ends here
        file.seek(copy.stat().st_size // 2)
        file.write(bytes(copy.stat().st_size // 2))
    fewer = len(datasets.Dataset.from_file(str(copy)))
    assert 0 < fewer < ROWS
    with pytest.raises(UserError, match=f"{fewer} rows of {ROWS}.* delete {copy}"):
        open_copy(copy, "faces", ROWS)


READ_ON = """
import os, sys
from ffc_ds.data.copies import check_copies, open_copy
from pathlib import Path
copy = Path(sys.argv[1])
dataset = open_copy(copy, "faces", 40)
os.truncate(copy, os.path.getsize(copy) // 2)
child = os.fork()
if child == 0:
    dataset.data.column("image")[39].as_py()
    os._exit(0)
signal = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(signal)
check_copies([Path(file["filename"]) for file in dataset.cache_files], "faces")
"""


def test_a_copy_that_is_cut_while_it_is_read_kills_the_reader_and_is_named_by_its_parent(copy):
    done = subprocess.run([sys.executable, "-c", READ_ON, copy], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "-7"  # SIGBUS
    assert f"delete {copy}, and it is made anew" in done.stderr


@pytest.mark.parametrize("content", [b"", b'{"features": {', b"[]", b"\xff\xfe"])
def test_what_datasets_noted_about_its_copy_is_damaged(tmp_path, copy, content):
    folder = tmp_path / "cache" / "faces" / "default"
    folder.mkdir(parents=True)
    copy.rename(folder / "faces-train.arrow")
    (folder / "dataset_info.json").write_text("{}")
    check_cache(tmp_path / "cache", "faces")
    (folder / "dataset_info.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"copy of faces .*dataset_info\.json.*: delete {folder},"):
        check_cache(tmp_path / "cache", "faces")
    (folder / "dataset_info.json").write_text("{}")
    os.truncate(folder / "faces-train.arrow", 1000)
    with pytest.raises(UserError, match=rf"copy of faces .*: delete {folder}/faces-train\.arrow"):
        check_cache(tmp_path / "cache", "faces")
