import errno
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import psutil
import pyarrow.parquet as pq
import pytest

from ffc_ds.data.importers import shards
from ffc_ds.data.importers.plan import Plan
from ffc_ds.data.importers.shards import SCHEMA, write_part, write_shards
from ffc_ds.data.opening import load_faces
from ffc_ds.errors import UserError
from tests.data.importers import formats
from tests.data.importers.formats import IMAGES, ROWS, imported, plan_of, read, rows


def listed(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_written_opens_as_images(tmp_path, monkeypatch, capsys):
    assert imported(plan_of(), tmp_path / "out") == ROWS
    assert "12 images in" in capsys.readouterr().out
    names = [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert listed(tmp_path / "out") == [".prepare", *names]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    faces = load_faces(str(tmp_path / "out"), "train", "image", "label")
    assert faces.encoded(range(12)) == list(IMAGES) and [faces.label(i) for i in range(12)] == [
        i // 3 for i in range(12)
    ]
    features = datasets.Features(
        image=datasets.Image(), label=datasets.Value("int64"), identity=datasets.Value("string")
    )
    assert SCHEMA.equals(features.arrow_schema, check_metadata=True)
    assert datasets.Features.from_arrow_schema(pq.read_schema(tmp_path / "out" / names[0])) == features
    assert datasets.load_dataset(str(tmp_path / "out"), split="train")[1]["image"].size == (20, 21)


def test_workers_and_row_groups_do_not_change_what_is_written(tmp_path, monkeypatch):
    assert imported(plan_of(size=1), tmp_path / "out", workers=3) == ROWS
    monkeypatch.setattr(shards, "GROUP_IMAGES", 3)
    write_part(partial(read, 0, 12), tmp_path / "images.parquet", "header", False)
    monkeypatch.setattr(shards, "GROUP_BYTES", max(map(len, IMAGES)))
    write_part(partial(read, 0, 12), tmp_path / "bytes.parquet", "header", False)
    groups = [pq.ParquetFile(tmp_path / f"{name}.parquet").num_row_groups for name in ("images", "bytes")]
    assert groups[0] == 4 and groups[1] > 4 and rows(tmp_path) == ROWS + ROWS


def test_broken_records_are_left_out_listed_and_counted(tmp_path, capsys):
    plan = plan_of(size=4, broken=(2, 4, 5, 6, 7))  # no image of the second file is left
    assert imported(plan, tmp_path / "out") == [row for i, row in enumerate(ROWS) if i not in (2, 4, 5, 6, 7)]
    assert listed(tmp_path / "out")[1:] == [
        "broken.tsv",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    table = (tmp_path / "out" / "broken.tsv").read_text()
    assert table == "".join(f"key {i}\tno reason\n" for i in (2, 4, 5, 6, 7))
    out = capsys.readouterr().out
    assert all(f"broken: key {i}: no reason" in out for i in (2, 4, 5, 6, 7)) and "5 broken records (see " in out


def test_the_check_finds_damaged_images(tmp_path, monkeypatch):
    damaged = [(image[:-30] if i % 2 else image, *row) for i, (image, *row) in enumerate(ROWS)]
    monkeypatch.setattr(formats, "ROWS", damaged)
    report = write_part(partial(read, 0, 12), tmp_path / "part.parquet", "header", False)
    assert rows(tmp_path) == damaged[::2] and report["images"] == 6
    assert [key for key, _ in report["broken"]] == [f"key {i}" for i in range(1, 12, 2)]
    assert all("not a " in reason for _, reason in report["broken"])


@pytest.mark.parametrize("check", ["header", "full"])
def test_an_image_of_too_many_pixels_is_a_broken_record(tmp_path, check):
    found = imported(plan_of(), tmp_path / "out", check=check, max_megapixels=22 * 20 / 1e6)
    assert found == [row for i, row in enumerate(ROWS) if i % 5 <= 2]  # of 20 to 24 times 20 pixels
    table = (tmp_path / "out" / "broken.tsv").read_text().splitlines()
    expected = [f"20 x {20 + i % 5} pixels, and max_megapixels allows 0.00044 million" for i in range(12) if i % 5 > 2]
    assert [line.split("its header announces ")[1] for line in table] == expected
    with pytest.raises(UserError, match="begun for another import .max_megapixels was 0.00044, now 64"):
        imported(plan_of(), tmp_path / "out", check=check)
    with pytest.raises(UserError, match="--max_megapixels is 200; it must be above 0, and at most 178"):
        imported(plan_of(), tmp_path / "new", max_megapixels=200)
    assert listed(tmp_path) == ["out"]


def test_stop_names_the_record_and_skip_goes_on_from_there(tmp_path):
    journal = tmp_path / "journal"
    journal.mkdir()
    plan = plan_of(size=4, broken=(6,), journal=str(journal))
    with pytest.raises(UserError, match="broken record key 6: no reason; --on_error skip leaves such records out"):
        imported(plan, tmp_path / "out", on_error="stop")
    assert listed(tmp_path / "out") == [".prepare"] and not list(tmp_path.rglob("*.partial"))
    assert imported(plan, tmp_path / "out") == ROWS[:6] + ROWS[7:]
    ran = [int(name.partition("-")[0]) for name in listed(journal)]
    assert ran.count(0) == 1 and ran.count(4) == 2


def test_a_finished_command_given_again_writes_nothing(tmp_path, capsys):
    imported(plan_of(broken=(0,)), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    said = capsys.readouterr().out.splitlines()[-1]
    assert imported(plan_of(broken=(0,)), tmp_path / "out") == ROWS[1:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    assert capsys.readouterr().out.strip() == said


def test_killed_while_files_get_their_names(tmp_path, monkeypatch):
    rename = Path.rename

    def break_off(path, target):
        if Path(target).name.startswith("train-00001"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", break_off)
    with pytest.raises(UserError, match="No space left on device.*the same command goes on"):
        imported(plan_of(), tmp_path / "out")
    monkeypatch.undo()
    assert len(rows(tmp_path / "out")) == 5
    assert imported(plan_of(), tmp_path / "out") == ROWS


@pytest.mark.parametrize("keep, told", [(0, "is gone"), (-100, "has .* bytes, not the"), (None, "is gone")])
def test_a_lost_file_and_a_cut_one_are_missed(tmp_path, keep, told):
    imported(plan_of(), tmp_path / "out")
    path = tmp_path / "out" / "train-00001-of-00003.parquet"
    content = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(content[:keep])
    with pytest.raises(UserError, match=f"train-00001-of-00003.parquet was written and {told}.*: put it back"):
        imported(plan_of(), tmp_path / "out")
    path.write_bytes(content)
    assert imported(plan_of(), tmp_path / "out") == ROWS


def test_a_file_cut_before_it_has_its_name_is_missed(tmp_path):
    with pytest.raises(UserError, match="broken record key 11"):  # the two first ones are finished
        imported(plan_of(broken=(11,)), tmp_path / "out", on_error="stop")
    part = tmp_path / "out" / ".prepare" / "00000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(UserError, match="train-00000-of-00003.parquet was written and has 50 bytes, not the"):
        imported(plan_of(broken=(11,)), tmp_path / "out")


SCRIPT = """
from tests.data.importers.formats import plan_of
from ffc_ds.data.importers.shards import write_shards
if __name__ == "__main__":
    write_shards(plan_of(size=1, journal={journal!r}, pause=0.4), {output!r}, workers=2)
"""


def test_killed_and_given_again(tmp_path):
    output, journal, script = tmp_path / "out", tmp_path / "journal", tmp_path / "run.py"
    journal.mkdir()
    script.write_text(SCRIPT.format(journal=str(journal), output=str(output)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    aside = output / ".prepare"
    while len(list(aside.glob("0*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=60)[1]  # they follow
    finished = {path: path.stat().st_mtime_ns for path in aside.glob("0*.json")}
    ran = len(listed(journal))
    assert listed(output) == [".prepare"] and 3 <= len(finished) < 12
    subprocess.run([sys.executable, str(script)], env=environment, check=True, capture_output=True)
    assert rows(output) == ROWS and not list(output.rglob("*.partial"))
    assert all(path.stat().st_mtime_ns == time_written for path, time_written in finished.items())
    assert len(listed(journal)) == ran + 12 - len(finished)


def test_a_folder_begun_for_something_else_is_left_alone(tmp_path):
    imported(plan_of(), tmp_path / "out")
    before = rows(tmp_path / "out")
    for plan, settings, changed in (
        (plan_of(about={"source": "other"}), {}, "source was test, now other"),
        (plan_of(size=6), {}, "files was 3, now 2"),
        (plan_of(), {"check": "full"}, "check was header, now full"),
        (plan_of(about={"kind": "other"}), {}, "source was test, now None; kind was None, now other"),
    ):
        with pytest.raises(UserError, match=f"begun for another import .{changed}.: give another folder"):
            imported(plan, tmp_path / "out", **settings)
    told = f"the source's files changed since {tmp_path}/out was begun: give another folder"
    for about in ({"source": "test", "content": "0a1b"}, {"source": "test", "content": "0a1c"}):
        with pytest.raises(UserError, match=told) as raised:
            imported(plan_of(about=about), tmp_path / "out")
        assert "0a1" not in str(raised.value)
    with pytest.raises(UserError, match="import .source was test, now other; the source has other files."):
        imported(plan_of(about={"source": "other", "content": "0a1b"}), tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="used is not empty"):
        imported(plan_of(), tmp_path / "used")
    assert rows(tmp_path / "out") == before and listed(tmp_path / "used") == ["thesis.txt"]


def test_nothing_is_left_of_an_import_without_images(tmp_path):
    with pytest.raises(UserError, match="no image can be used.*key 0: no reason"):
        imported(plan_of(broken=range(12)), tmp_path / "out")
    with pytest.raises(UserError, match="broken record key 1: no reason"):
        imported(plan_of(size=12, broken=(1,)), tmp_path / "out", on_error="stop")
    with pytest.raises(UserError, match="workers is 0"):
        imported(plan_of(), tmp_path / "out", workers=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file stopped \(.*Not a directory"):
        write_shards(plan_of(), str(tmp_path / "file"))
    assert listed(tmp_path) == ["file"]


def test_a_killed_worker_is_told(tmp_path):
    with pytest.raises(UserError, match="a worker process was killed"):
        imported(Plan({}, [partial(os._exit, 9)]), tmp_path / "out")
    assert listed(tmp_path) == []
