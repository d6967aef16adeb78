"""`launch/benchmark.py loader`: rates of every part of the data path, in a table."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from ffc_ds.errors import UserError
from launch.benchmark import main

SMALL = ["--image_size", "32", "--batch_size", "24", "--steps", "3", "--workers", "1", "2"]


def test_rates_of_the_parts_and_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    main(["loader", "--data", "generated:30:32", "--output", str(tmp_path / "out"), *SMALL])
    found = json.loads((tmp_path / "out" / "loader.json").read_text())
    assert list(found["parts"]) == ["plan", "read", "decode", "collate"] and list(found["workers"]) == ["1", "2"]
    workers = [rate for each in found["workers"].values() for rate in each.values()]
    rates = np.array([*found["parts"].values(), found["bare_decoding"], *workers])
    assert np.isfinite(rates).all() and (rates > 0).all()

    text = (tmp_path / "out" / "loader.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    names = ["part", "---", *found["parts"], "together", "bare JPEG decoding", "worker processes", "---", "1", "2"]
    assert [row[0] for row in rows] == names
    shares = [float(row[2].removesuffix(" %")) for row in rows[2:6]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    whole, two = float(rows[6][1].replace(",", "")), found["workers"]["2"]
    assert 1 / whole == pytest.approx(sum(1 / rate for rate in found["parts"].values()), rel=0.01)
    assert rows[-1][1:] == [f"{two['path']:,.0f}", f"{two['bare']:,.0f}", f"{100 * two['ratio']:.0f} %"]
    assert "24 images of 32 x 32 pixels, from generated:30:32" in text and "torch 2." in text


def test_images_that_are_no_jpegs_cannot_be_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    rows = {"image": [{"bytes": png.getvalue(), "path": None}] * 30, "label": list(range(15)) * 2}
    (tmp_path / "pngs").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "pngs" / "train.parquet")
    with pytest.raises(UserError, match="pngs holds images that simplejpeg cannot decode"):
        main(["loader", "--data", str(tmp_path / "pngs"), "--output", str(tmp_path / "out"), *SMALL])
