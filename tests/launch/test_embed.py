"""`launch/embed.py` from the outside: two ranks, a kill, refusals; and one model by three roads."""

import os
import re
import shutil
import signal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ffc_ds.data.decoding import decode, decode_many
from ffc_ds.data.opening import load_faces
from ffc_ds.embedding_set import parts as module
from ffc_ds.embedding_set.run import embed_set
from ffc_ds.embedding_set.settings import parse_settings
from ffc_ds.errors import UserError
from ffc_ds.evaluation.pair_files import write_pair_bin
from ffc_ds.evaluation.run import evaluate
from ffc_ds.evaluation.settings import parse_settings as parse_evaluation
from ffc_ds.models.opening import load_model
from tests.launched import ROOT, free_port, train_ranks
from tests.protocol_data import person_folders, tiny_model
from tests.warm import Call, environment, run_script, run_warm

DAMAGED = "Person_2/Person_2_0003.jpg"
FILES = [f"train-{number:05d}-of-00004.parquet" for number in range(4)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_model(folder / "model")
    (person_folders(folder / "faces", people=6, images=5) / DAMAGED).write_bytes(b"\xff\xd8\xff")
    return folder


def arguments(data, output, *more):
    line = ["--data", data / "faces", "--model", data / "model", "--output_dir", output, "--file_images", "8"]
    return [*map(str, line), "--batch_size", "3", *more]


def embed(*line):
    embed_set(parse_settings([*map(str, line)]))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "alone"
    embed(*arguments(data, folder))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
def test_two_ranks_write_what_the_net_makes_of_every_image_that_can_be_read(data, alone, tmp_path):
    line = arguments(data, tmp_path / "two", "--local_rank=0")
    first, second = train_ranks(2, *line, script="launch/embed.py")
    assert first.code == second.code == 0, first.stderr[-3000:] + second.stderr[-3000:]
    assert "29 embeddings of 16 numbers" in first.stdout and "damaged images left out: 1" in first.stdout
    assert content(tmp_path / "two") == content(alone)

    found = datasets.load_dataset("parquet", data_files=f"{tmp_path}/two/*.parquet", split="train")
    images = sorted((data / "faces").rglob("*.jpg"))
    kept = [row for row, path in enumerate(images) if not str(path).endswith(DAMAGED)]
    assert found["row"] == kept and found["path"] == [str(images[row]) for row in kept]
    assert found["name"] == [images[row].parent.name for row in kept]
    pixels = np.stack([decode(images[row].read_bytes(), 32) for row in kept])
    truth = load_model(str(data / "model"))(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).embeddings
    np.testing.assert_allclose(found["norm"], truth.norm(dim=1), rtol=1e-5)
    np.testing.assert_allclose(found["embedding"], torch.nn.functional.normalize(truth), atol=1e-3)
    assert found.features["embedding"] == datasets.List(datasets.Value("float16"), length=16)
    assert (tmp_path / "two" / "damaged.tsv").read_text().startswith("row 12 (label Person_2)")


def die_in_the_third_file(*line):
    write = module.pq.write_table

    def written(table, path, **settings):
        write(table, path, **settings)
        if "00002" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)

    module.pq.write_table = written
    run_script("launch/embed.py", *line)


def hasty(*line):
    from ffc_ds import shared_folder

    shared_folder.PATIENCE = 0.3
    run_script("launch/embed.py", *line)


@pytest.mark.parametrize(
    ("out", "model", "reason"),
    [
        (["a", "b"], ["model", "model"], "output_dir .*/a is not one folder for all ranks"),
        (["a", "a"], ["model", "other"], "weights is .* on rank 1 and .* on rank 0: give all hosts the same images"),
    ],
)
def test_ranks_that_do_not_have_the_same_are_refused(data, tmp_path, out, model, reason):
    """As on hosts with disks of their own."""
    net = load_model(str(tiny_model(tmp_path / "model")))
    net.fc.bias.data[3] += 1
    net.save_pretrained(tmp_path / "other")
    line = ["--data", str(data / "faces"), "--model", "$MODEL", "--output_dir", "$OUT"]
    job = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    calls = []
    for rank in (0, 1):
        (tmp_path / out[rank]).mkdir(exist_ok=True)
        places = {"OUT": str(tmp_path / out[rank]), "MODEL": str(tmp_path / model[rank])}
        calls.append(Call(hasty, tuple(line), environment(RANK=str(rank), LOCAL_RANK=str(rank), **job, **places)))
    first, second = run_warm(calls)
    assert (first.code, second.code) == (2, 2), first.stderr[-3000:] + second.stderr[-3000:]
    assert re.search(reason, first.stderr), first.stderr[-3000:]


def test_a_killed_command_goes_on_and_keeps_what_is_finished(data, alone, tmp_path):
    folder = tmp_path / "out"
    line = arguments(data, folder)
    (ended,) = run_warm([Call(die_in_the_third_file, tuple(line), environment())])
    assert ended.code == -signal.SIGKILL
    there = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert set(there) == {*FILES[:2], f".{FILES[2]}.unfinished"}
    embed(*line)
    assert content(folder) == content(alone)
    assert all((folder / name).stat().st_ino == there[name] for name in FILES[:2])


def test_float32_mirrored_and_a_part_of_generated_faces(data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    line = ["--data", "generated:8:32:3", "--model", data / "model", "--output_dir", tmp_path / "out"]
    embed(*line, "--split", "train[5:15]", "--dtype", "float32", "--flip", "true")
    found = pq.read_table(tmp_path / "out")
    assert found["row"].to_pylist() == list(range(10)) and str(found["name"].type) == "int64"
    images = load_faces("generated:8:32:3", "train", "image", "label").encoded(np.arange(5, 15))
    inputs = torch.from_numpy(decode_many(images, 32)).permute(0, 3, 1, 2) / 127.5 - 1
    net = load_model(str(data / "model"))
    truth = (net(inputs).embeddings + net(inputs.flip(3)).embeddings).detach()
    np.testing.assert_allclose(found["norm"], truth.norm(dim=1), rtol=1e-5)
    embeddings = np.stack(found["embedding"].to_numpy())
    np.testing.assert_allclose(embeddings, torch.nn.functional.normalize(truth), atol=1e-5)
    with pytest.raises(UserError, match="flip was True, now False"):
        embed(*line, "--split", "train[5:15]", "--dtype", "float32")


@pytest.fixture
def copy(alone, tmp_path):
    return shutil.copytree(alone, tmp_path / "copy")


def another_model(data, tmp_path):
    model = load_model(str(data / "model"))
    model.fc.bias.data[3] += 1
    model.save_pretrained(tmp_path / "other")
    return ["--model", tmp_path / "other"]


def other_data(data, tmp_path):
    return ["--data", person_folders(tmp_path / "faces", people=6, images=5)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (another_model, r"otherwise \(another model\)"),
        (other_data, r"otherwise \(other data\)"),
        (lambda *_: ["--dtype", "float32"], "dtype was float16, now float32"),
        (lambda *_: ["--file_images", "7"], "file_images was 8, now 7"),
        (lambda *_: ["--workers", "0"], "workers is 0; it must be 1 or more"),
        (lambda *_: ["--onnx.size", "32"], "is no ONNX file"),
    ],
)
def test_files_made_of_something_else_are_refused(data, copy, tmp_path, change, reason):
    before = content(copy)
    with pytest.raises(UserError, match=reason):
        embed(*arguments(data, copy), *change(data, tmp_path))
    assert content(copy) == before


def test_a_file_that_is_not_one_of_these_is_refused(data, copy):
    line, path = arguments(data, copy), copy / FILES[1]
    table = pq.read_table(path)
    halved = pa.array([value[:8] for value in table["embedding"].to_pylist()], pa.list_(pa.float16(), 8))
    shorter = table.set_column(3, "embedding", halved)
    for broken, reason in (
        (shorter, r"embedding fixed_size_list<.*>\[8\].*remove it"),
        (table.slice(1), "holds 6 rows of"),
        (table.replace_schema_metadata(), "no file of embeddings of embed.py"),
    ):
        pq.write_table(broken, path)
        with pytest.raises(UserError, match=f"{FILES[1]} .*{reason}"):
            embed(*line)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{FILES[1]} is cut or damaged"):
        embed(*line)
    path.unlink()
    (copy / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds mine.txt: give the embeddings a folder of their own"):
        embed(*line)


def test_a_set_without_an_image_that_can_be_read_is_an_error(data, tmp_path):
    (person_folders(tmp_path / "faces", 1, 1) / "Person_0" / "Person_0_0001.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="no image can be used .*Person_0"):
        embed("--data", tmp_path / "faces", "--model", data / "model", "--output_dir", tmp_path / "out")


def test_a_model_exported_by_us_gives_the_same_numbers_on_every_road(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install ffc_ds[export]")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install ffc_ds[export]")
    from ffc_ds.export.onnx import export_onnx
    from tests.export.finished_run import finished_run

    finished_run(tmp_path / "run", image_size=112)
    (tmp_path / "pack").mkdir()
    export_onnx(tmp_path / "run", tmp_path / "pack" / "net.onnx")
    faces = person_folders(tmp_path / "faces", people=20, images=3)
    images = [path.read_bytes() for path in sorted(faces.rglob("*.jpg"))]
    write_pair_bin(tmp_path / "pairs.bin", [*images, *images[1:], images[0]], np.arange(60) % 3 < 2)
    results, embeddings = [], []
    for model, output in (("run", "of_run"), ("pack/net.onnx", "of_file"), ("pack", "of_pack")):
        line = ["--data", faces, "--model", tmp_path / model, "--output_dir", tmp_path / output]
        embed(*line, "--dtype", "float32")
        embeddings.append(np.stack(pq.read_table(line[-1])["embedding"].to_numpy()))
    for model in ("run", "pack"):
        line = ["--model", str(tmp_path / model), "--pairs", str(tmp_path / "pairs.bin"), "--output_dir"]
        (result,) = evaluate(parse_evaluation([*line, str(tmp_path / "figures" / model)]))
        results.append({key: round(result.numbers[key], 4) for key in ("accuracy", "auc")})
    for found in embeddings[1:]:
        np.testing.assert_allclose(found, embeddings[0], atol=1e-4)
    assert results[0] == results[1] and 0.55 < results[0]["accuracy"] < 1


def test_the_docs_find_the_images_that_are_most_alike(alone, tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    shutil.copytree(alone, tmp_path / "out" / "embeddings")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "embeddings.md").read_text(), re.DOTALL | re.M)
    found = {}
    exec(example, found)
    assert found["nearest"]["row"][0] == 0 and found["distances"][0] == pytest.approx(0, abs=1e-3)
    assert len(found["distances"]) == 5
