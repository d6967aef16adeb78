"""`launch/evaluate.py` from the outside: every protocol in one run, alone and on two ranks; refusals."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_files import write_pair_bin
from ffc_ds.evaluation.run import evaluate
from ffc_ds.evaluation.settings import parse_settings
from tests.launched import ROOT, command, environment
from tests.protocol_data import ijb_folder, person_folders, tiny_model, write_lines

FILES = {"results.json", "table.md", "roc.png", "histogram.png", "errors.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_model(folder / "model")
    faces = person_folders(folder / "faces", people=6, images=3)
    person_folders(folder / "others", people=5, images=5, first=20)
    rows = [(f"Person_{a}", i, j) for a in range(6) for i, j in ((1, 2), (2, 3))]
    rows += [(f"Person_{a}", 1, f"Person_{a + 1}", 2) for a in range(5) for _ in range(4)]
    write_lines(faces / "pairs.txt", rows)
    images = [path.read_bytes() for path in sorted(faces.rglob("*.jpg"))]
    write_pair_bin(folder / "lfw.bin", [*images, *images[1:], images[0]], np.arange(18) % 3 < 2)
    ijb_folder(folder / "IJBC")
    return folder


def arguments(data, output):
    return [
        *("--model", str(data / "model"), "--output_dir", str(output)),
        *("--pairs", str(data / "lfw.bin"), str(data / "faces" / "pairs.txt"), "--ijb", str(data / "IJBC")),
        *("--probes", str(data / "faces"), "--distractors", str(data / "others"), "--batch_size", "8"),
    ]


def run(line):
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "alone"
    done = run([sys.executable, "launch/evaluate.py", *arguments(data, folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_one_run_leaves_numbers_tables_and_figures(data, alone):
    folder, done = alone
    assert {path.name for path in folder.iterdir()} == FILES and list(folder.parent.iterdir()) == [folder]
    stored = json.loads((folder / "results.json").read_text())
    found = [(each["protocol"], each["name"].removeprefix(f"{data}/")) for each in stored["results"]]
    assert found[:4] == [
        ("pair verification", "lfw.bin"),
        ("pair verification", "faces/pairs.txt"),
        ("1:1 verification of templates", "IJBC"),
        ("1:N identification", "IJBC G1"),
    ]
    assert len(found) == 8 and found[7][0] == "identification among distractors"
    assert stored["versions"]["torch"] and stored["config"]["batch_size"] == 8
    assert stored["results"][2]["tar_at_far"]["1e-06"] is None

    table = (folder / "table.md").read_text()
    assert table in done.stdout and str(folder) in done.stdout
    assert table.count("## ") == 4 and "TAR at FAR 1e-06" in table and "| not resolvable |" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 4 * 2 + 8
    assert f"{stored['results'][0]['accuracy']:.4f}" in table


def test_the_importable_function_and_two_ranks_give_the_same_numbers(data, alone, tmp_path):
    expected = json.loads((alone[0] / "results.json").read_text())["results"]
    line = command(2)
    line[-1:] = ["launch/evaluate.py", *arguments(data, tmp_path / "two")]
    done = run(line)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("## pair verification") == 1
    found = json.loads((tmp_path / "two" / "results.json").read_text())["results"]
    results = evaluate(parse_settings(arguments(data, tmp_path / "function")))
    for each, other, result in zip(expected, found, results, strict=True):
        assert numbers(each) == pytest.approx(numbers(other), abs=1e-6)
        assert numbers(each) == pytest.approx(numbers(result.numbers), abs=1e-6)


def numbers(result):
    """All numbers of a result, those in dictionaries too; None as -1."""
    found = [value for value in result.values() if not isinstance(value, str)]
    found = [number for value in found for number in (value.values() if isinstance(value, dict) else [value])]
    return [-1 if number is None else number for number in found]


def test_a_damaged_bin_is_refused_and_leaves_nothing(data, tmp_path):
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(([b"\xff\xd8\xff"] * 3, [True, False])))
    line = ["--model", str(data / "model"), "--pairs", str(tmp_path / "bad.bin"), "--output_dir", str(tmp_path / "out")]
    done = run([sys.executable, "launch/evaluate.py", *line])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "bad.bin is not a valid InsightFace .bin: it holds 3 images and 2 flags" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"bad.bin"}


def test_a_folder_of_ijb_in_the_wrong_shape_is_refused_and_leaves_nothing(data, tmp_path):
    shutil.copytree(data / "IJBC", tmp_path / "IJBC")
    pairs = tmp_path / "IJBC" / "meta" / "ijbc_template_pair_label.txt"
    pairs.write_text(pairs.read_text() + "3 10\n")
    line = ["--model", str(data / "model"), "--ijb", str(tmp_path / "IJBC"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="ijbc_template_pair_label.txt cannot be used"):
        evaluate(parse_settings(line))
    assert {path.name for path in tmp_path.iterdir()} == {"IJBC"}


def test_what_fails_in_the_middle_leaves_nothing(data, tmp_path):
    shutil.copytree(data / "others", tmp_path / "others")
    (tmp_path / "others" / "Person_22" / "Person_22_0003.jpg").write_bytes(b"\xff\xd8\xff")
    line = ["--model", str(data / "model"), "--probes", str(data / "faces"), "--distractors", str(tmp_path / "others")]
    with pytest.raises(UserError, match="Person_22_0003.jpg"):
        evaluate(parse_settings([*line, "--output_dir", str(tmp_path / "out")]))
    assert {path.name for path in tmp_path.iterdir()} == {"others"}


@pytest.mark.parametrize(
    ("protocol", "named"),
    [
        (["--pairs", "lfw.bin"], "item 0 of lfw.bin: its header"),
        (["--pairs", "faces/pairs.txt"], r"faces/Person_0/Person_0_0001.jpg: its header"),
        (["--ijb", "IJBC"], r"IJBC/loose_crop/\d+.jpg: its header"),
        (["--probes", "faces", "--distractors", "others"], "Person_0_0001.jpg: its header"),
    ],
)
def test_the_bound_on_pixels_holds_in_every_protocol(data, monkeypatch, protocol, named):
    monkeypatch.chdir(data)
    line = ["--model", "model", "--output_dir", "out", *protocol, "--max_megapixels", "0.001"]
    with pytest.raises(
        UserError, match=rf"{named} announces \d+ x \d+ pixels, and max_megapixels allows 0.001 million"
    ):
        evaluate(parse_settings(line))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ([], "nothing to evaluate on"),
        (["--max_megapixels", "0"], "max_megapixels is 0.0; it must be above 0, and at most 178"),
        (["--probes", "."], "identification takes both"),
        (["--pairs", "lfw.bin", "--noises", "n.txt"], "give these as well"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--batch_size", "many"], "settings cannot be used.*batch_size"),
        (["--bathc_size", "3"], "settings cannot be used.*bathc_size"),
        (["--probes", "no_such_folder", "--distractors", "."], "there is no folder .*no_such_folder"),
        (["--probes", "others/Person_20", "--distractors", "others"], None),
        (["--pairs", "lfw.bin", "--model", "no/such/model"], "no folder no/such/model here"),
        (["--pairs", "lfw.bin", "--output_dir", "faces"], "faces exists already"),
    ],
)
def test_settings_that_cannot_work_are_refused(data, monkeypatch, line, reason):
    monkeypatch.chdir(data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(data.rglob("*"))
    line = ["--model", "model", "--output_dir", "out", *line]
    if reason is None:  # one person alone is somebody to find
        assert len(evaluate(parse_settings(line))) == 1
        shutil.rmtree(data / "out")
    else:
        with pytest.raises(UserError, match=reason):
            evaluate(parse_settings(line))
    assert sorted(data.rglob("*")) == before


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as end:
        parse_settings(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "YTF's splits.txt" in shown and "score of the face detector" in shown
