"""The example without faces, where its data lies beside the checkout: small, but far better than raw pixels."""

import json
import re
import shlex
import subprocess

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel

import ffc_ds.models  # noqa: F401 (registers the backbones)
from ffc_ds.config.settings import parse_config
from ffc_ds.embedding import of_pixels
from tests.launched import ROOT, train
from tests.scripts import script

OMNIGLOT = ROOT / ".." / "shared" / "data" / "omniglot"
PAGE = (ROOT / "docs" / "omniglot.md").read_text()
RECIPE = str(ROOT / "launch" / "recipes" / "omniglot.yaml")
SMALL = (
    *("--model.overrides", "{width: 0.125, depth: [1, 1, 1, 1]}", "--model.embedding_size", "64"),
    *("--train.steps", "50", "--data.batch_size", "64", "--data.crop", "0", "--eval.every", "0"),
)


def test_nothing_in_the_recipe_takes_characters_for_faces():
    data = parse_config(["--config", RECIPE]).data
    assert not data.flip and data.grey == data.colour == data.low_resolution == data.blur == 0


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the shared Omniglot folder is not here")
def test_unseen_alphabets_are_told_apart_far_better_than_by_raw_pixels(tmp_path, monkeypatch):
    done = train(2, "--config", RECIPE, *SMALL, "--data.train", str(OMNIGLOT), "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["identities"] == 183

    monkeypatch.chdir(ROOT)
    (page,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    raw = {}
    exec(page.replace('"OMNIGLOT"', repr(str(OMNIGLOT))), raw)
    best = max(raw["ink"].auc, raw["as_they_are"].auc)
    assert 0.6 < best < 0.7 and results["trained"]["auc"] > best + 0.1

    net = AutoModel.from_pretrained(tmp_path / "model").eval()
    alone = raw["compare"](of_pixels(lambda pixels: net(pixels).embeddings, torch.device("cpu"), torch.float32))
    assert alone.auc == pytest.approx(results["trained"]["auc"], abs=1e-3)  # without mirror images


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the shared Omniglot folder is not here")
def test_the_ranges_of_rows_are_whole_alphabets():
    names = pq.read_table(OMNIGLOT / "train-00000-of-00001.parquet", columns=["name"])["name"].to_pylist()
    alphabets = [name.split("/")[0] for name in names]
    config = parse_config(["--config", RECIPE])
    end, begin = (int(split.strip("train[:]")) for split in (config.data.split, config.eval.split))
    trained, verified = set(alphabets[:end]), set(alphabets[begin:])
    assert end == begin and len(trained) == 6 and verified == {"Sanskrit", "Tagalog"} and not trained & verified


def drawings(folder):
    """As they are in the files, and their labels."""
    table = pq.read_table(folder, columns=["image", "label"])
    return table["image"].combine_chunks().field("bytes").to_pylist(), table["label"].to_pylist()


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the shared Omniglot folder is not here")
def test_the_folder_that_the_page_makes_of_the_published_one_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = pq.read_table(OMNIGLOT, columns=["name"])["name"].to_pylist()
    published = zip([*names, "Other/character01"], [*drawings(OMNIGLOT)[0], b""], strict=True)
    for number, (name, drawing) in enumerate(published):
        file = tmp_path / "images_background" / name / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(drawing)
    *loop, command = re.search(r"^mkdir characters\n.*?^python .*?$", PAGE, re.DOTALL | re.MULTILINE)[0].splitlines()
    subprocess.run(["bash", "-ec", "\n".join(loop)], check=True)
    script("prepare_data").main(shlex.split(command)[2:])
    assert drawings(tmp_path / "OMNIGLOT") == drawings(OMNIGLOT)
