"""Generated identities: reproducible to the bit, disjoint splits, a long tail, pixels that give nobody away."""

import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ffc_ds.data.generated import dataset as generated
from ffc_ds.data.generated import parts
from ffc_ds.data.generated.parameters import PERSON, PICTURE, draw
from ffc_ds.data.generated.renderer import render
from ffc_ds.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path


def in_another_process(code: str, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def output_of(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()
    return out.decode()


def test_image_is_the_same_alone_and_in_any_batch():
    rng = np.random.default_rng(0)
    identities, images = rng.integers(-(2**62), 2**62, 70), rng.integers(0, 60, 70)
    batch = render(identities, images, 32, seed=3)
    assert batch.shape == (70, 32, 32, 3) and batch.dtype == np.uint8
    for i in (0, 31, 63, 64, 69):
        np.testing.assert_array_equal(render(identities[i : i + 1], images[i : i + 1], 32, seed=3)[0], batch[i])
    order = rng.permutation(70)
    np.testing.assert_array_equal(render(identities[order], images[order], 32, seed=3), batch[order])


def test_image_is_the_same_in_threads_and_in_another_process():
    identities, images = np.arange(24) // 4, np.arange(24) % 4
    expected = render(identities, images, 48)
    with ThreadPoolExecutor(4) as pool:
        for pixels in pool.map(lambda _: render(identities, images, 48), range(4)):
            np.testing.assert_array_equal(pixels, expected)
    code = """if True:
        import hashlib, numpy as np
        from ffc_ds.data.generated.renderer import render
        print(hashlib.sha256(render(np.arange(24) // 4, np.arange(24) % 4, 48).tobytes()).hexdigest())"""
    # Without the wide vector units of this processor numpy takes other code paths: the bits must not notice.
    wide = " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
    plain = output_of(in_another_process(code, NPY_DISABLE_CPU_FEATURES=wide))
    assert plain.strip() == hashlib.sha256(expected.tobytes()).hexdigest()


def test_seed_identity_and_image_number_each_change_the_picture():
    one = render(np.array([5]), np.array([1]), 32)[0].astype(int)
    for other in (render([5], [1], 32, seed=1), render([6], [1], 32), render([5], [2], 32), render([1], [5], 32)):
        assert np.abs(other[0] - one).mean() > 5


def test_parameters_span_their_ranges():
    keys = np.arange(4000, dtype=np.uint64)
    for table in (PERSON, PICTURE):
        drawn = draw(table, keys)
        for name, (low, high) in table.items():
            values = getattr(drawn, name)
            assert values.shape == (4000, 1, 1) and values.dtype == np.float32
            assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
            assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)


def test_without_nuisance_one_persons_pictures_are_alike(monkeypatch):
    identities, images = np.repeat(np.arange(20), 2), np.tile([0, 1], 20)
    middle = {name: (1.0 if name in ("glasses", "scarf", "patch") else (low + high) / 2,) * 2
              for name, (low, high) in PICTURE.items()}  # fmt: skip
    monkeypatch.setattr("ffc_ds.data.generated.renderer.PICTURE", middle)
    faces = render(identities, images, 48)[:, 14:36, 14:34].astype(float)  # the face, none of the background
    difference = np.abs(faces[:, None] - faces[None]).mean((2, 3, 4))
    same = difference[np.arange(0, 40, 2), np.arange(1, 40, 2)]
    others = difference[np.arange(0, 40, 2)][:, np.arange(1, 40, 2)][~np.eye(20, dtype=bool)]
    assert same.max() < others.min()


def test_raw_pixels_are_near_chance():
    rng = np.random.default_rng(0)
    people = 400
    pixels = render(np.repeat(np.arange(people), 2) + 2**62, np.tile([0, 1], people), 32).reshape(2 * people, -1)
    features = pixels - pixels.mean(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    first, second = features[::2], features[1::2]
    same, other = (first * second).sum(1), (first * np.roll(second, 1, 0)).sum(1)
    fold, accuracies = rng.permutation(people) % 10, []
    for k in range(10):
        train_same, train_other = same[fold != k], other[fold != k]
        thresholds = np.sort(np.concatenate([train_same, train_other]))
        hits = (train_same[None] > thresholds[:, None]).sum(1) + (train_other[None] <= thresholds[:, None]).sum(1)
        best = thresholds[hits.argmax()]
        accuracies.append(((same[fold == k] > best).mean() + (other[fold == k] <= best).mean()) / 2)
    assert np.mean(accuracies) < 0.6


def test_long_tail():
    identities = np.arange(100_000)
    numbers = generated.number_of_images(identities)
    assert numbers.dtype == np.int64 and numbers.min() == 1 and numbers.max() == generated.LARGEST
    assert 7 < numbers.mean() < 9 and 0.3 < (numbers <= 2).mean() < 0.45
    histogram = np.bincount(numbers, minlength=generated.LARGEST + 1)[1:]
    expected = 1 / (np.arange(1, generated.LARGEST + 1) + 3.0) ** 2
    np.testing.assert_allclose(histogram / len(numbers), expected / expected.sum(), atol=0.004)
    np.testing.assert_array_equal(generated.number_of_images(identities[777:779]), numbers[777:779])
    assert (generated.number_of_images(identities, seed=1) != numbers).any()


@pytest.mark.parametrize("mean", [1, 1.5, 8, 20])
def test_the_tail_keeps_its_shape_when_its_mean_is_chosen(mean):
    identities = np.arange(20_000)
    plain, numbers = generated.number_of_images(identities), generated.number_of_images(identities, mean=mean)
    assert numbers.dtype == np.int64 and numbers.mean() == pytest.approx(mean, rel=0.03)
    tail = 1 / (np.arange(1, 65) + 3.0) ** 2
    factor = (mean - 1) / ((np.arange(1, 65) * tail).sum() / tail.sum() - 1)
    rounded_up = 0
    for number, before in zip(numbers.tolist(), plain.tolist(), strict=True):
        exact = 1 + (before - 1) * factor
        assert math.floor(exact) <= number <= math.floor(exact) + 1
        rounded_up += (number - math.floor(exact)) - (exact - math.floor(exact))
    assert abs(rounded_up) < 5 * math.sqrt(len(plain)) / 2
    np.testing.assert_array_equal(generated.number_of_images(identities[777:779], mean=mean), numbers[777:779])


def test_dataset_holds_the_rendered_images(cache):
    data = generated.build(30, "train", size=32, seed=4)
    counts = generated.number_of_images(np.arange(30), seed=4)
    assert data["label"][:] == np.repeat(np.arange(30), counts).tolist()
    assert data.features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "name": datasets.Value("string")}
    )
    assert data[0]["name"] == "train-00000000" and data[-1]["name"] == "train-00000029"
    last = data[len(data) - 1]["image"]
    pixels = render(np.array([29]), np.array([counts[29] - 1]), 32, seed=4)[0]
    assert last.size == (32, 32)
    assert np.abs(np.asarray(last, int) - pixels).mean() < 12  # JPEG smooths the sensor noise


def test_dataset_looks_like_a_parquet_folder(cache, tmp_path):
    data = generated.build(5, "train", size=32)
    (tmp_path / "folder").mkdir()
    data.to_parquet(tmp_path / "folder" / "train.parquet")
    loaded = datasets.load_dataset(str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "other"))
    assert loaded.features == data.features
    raw = [d.with_format("arrow")[:] for d in (data, loaded)]
    assert raw[0].schema.types == raw[1].schema.types and raw[0].to_pylist() == raw[1].to_pylist()
    assert Image.open(io.BytesIO(raw[0]["image"][0]["bytes"].as_py())).format == "JPEG"


def test_test_people_are_other_people_with_four_images_at_least(cache):
    data = generated.build(30, "test", size=32)
    counts = np.bincount(data["label"][:])
    numbers = generated.number_of_images(np.arange(30) + generated.FIRST_IDENTITY["test"])
    np.testing.assert_array_equal(counts, np.maximum(numbers, generated.FEWEST_IN_TEST))
    assert data[0]["name"] == "test-00000000"
    train = generated.build(30, "train", size=32)
    assert not jpegs_of(train) & jpegs_of(data)
    pixels = render(np.array([2**62]), np.array([0]), 32)[0]
    assert np.abs(np.asarray(data[0]["image"], int) - pixels).mean() < 12


def jpegs_of(data: datasets.Dataset) -> set[bytes]:
    return {row["image"]["bytes"] for row in data.with_format("arrow")[:].to_pylist()}


def test_second_build_reads_the_cache_and_other_arguments_do_not(cache, monkeypatch):
    first = generated.build(4, "train", size=32)
    other = generated.build(4, "train", size=32, seed=1)
    assert first.with_format("arrow")[:] != other.with_format("arrow")[:]
    monkeypatch.setattr(parts, "render", None)
    again = generated.build(4, "train", size=32)
    assert again.cache_files == first.cache_files and again._fingerprint == first._fingerprint
    monkeypatch.setattr(generated, "RENDERER_VERSION", -1)
    with pytest.raises(TypeError):
        generated.build(4, "train", size=32)


def slow_dataset(people, mean):
    """(label, name, JPEG) one image at a time."""
    counts = generated.number_of_images(np.arange(people), mean=mean)
    return [
        {"image": {"bytes": simplejpeg.encode_jpeg(render([label], [number], 16)[0], quality=92), "path": None},
         "label": label, "name": f"train-{label:08d}"}
        for label in range(people) for number in range(counts[label])
    ]  # fmt: skip


def test_parts_by_several_processes_are_the_whole(cache, monkeypatch):
    monkeypatch.setattr(parts, "FEWEST_PEOPLE", 3)
    monkeypatch.setattr(parts, "MOST_PARTS", 12)
    data = generated.build(50, "train", size=16, mean=2.5)
    (folder,) = (cache / "generated").iterdir()
    assert len(list(folder.iterdir())) == 10 > parts.ALONE
    assert data.with_format("arrow")[:].to_pylist() == slow_dataset(50, 2.5)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lost = sorted(folder.iterdir())[4]
    lost.unlink()
    again = generated.build(50, "train", size=16, mean=2.5)
    assert again._fingerprint == data._fingerprint
    assert again.with_format("arrow")[:].to_pylist() == slow_dataset(50, 2.5)
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {lost.name}


def test_what_is_interrupted_is_gone_on_with(cache, monkeypatch):
    def fail_later(identities, images, size, seed):
        if identities.max() >= 6:
            raise MemoryError
        return render(identities, images, size, seed)

    monkeypatch.setattr(parts, "FEWEST_PEOPLE", 5)
    monkeypatch.setattr(parts, "CHUNK", 2)
    monkeypatch.setattr(parts, "render", fail_later)
    with pytest.raises(MemoryError):
        generated.build(20, "train", size=16)
    (folder,) = (cache / "generated").iterdir()
    assert [path.name for path in folder.iterdir()] == ["0000000000.arrow"]
    monkeypatch.setattr(parts, "render", render)
    assert generated.build(20, "train", size=16).with_format("arrow")[:].to_pylist() == slow_dataset(20, None)


def test_large_sets_have_few_parts_and_few_test_people(monkeypatch):
    for people in (2, 512, 513, 100_000, 10**8):
        ends = list(parts.bounds(people))
        assert len(ends) <= 256 and ends[0][0] == 0 and ends[-1][1] == people
        assert all(end == first for (_, end), (first, _) in itertools.pairwise(ends))
    asked = []
    monkeypatch.setattr(generated, "write_missing", lambda parts, what: asked.extend(parts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generated.build(10**8, "test")
    assert asked[-1].end == 10_000


def test_a_full_disk_is_told(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generated, "write_missing", full)
    with pytest.raises(UserError, match="generated faces cannot be written.*No space left on device"):
        generated.build(20, "train", size=16)


def test_a_part_that_is_cut_off_is_named(cache, monkeypatch):
    monkeypatch.setattr(parts, "BATCH_BYTES", 1)
    rows = len(generated.build(600, "train", 16, mean=1))
    part = sorted(cache.rglob("*.arrow"))[-1]
    whole = part.read_bytes()
    for cut in (whole[:-20], whole[: len(whole) // 2]):
        part.write_bytes(cut)
        with pytest.raises(UserError, match=rf"copy of generated faces \(train\) in the cache .*: delete {part}, and"):
            generated.build(600, "train", 16, mean=1)
    part.unlink()
    assert len(generated.build(600, "train", 16, mean=1)) == rows == 600


def test_processes_that_build_at_once_share_one_complete_file(cache):
    code = """if True:
        import json
        from ffc_ds.data.generated import dataset as generated
        data = generated.build(60, "train", size=32)
        print(json.dumps([len(data), data._fingerprint, data.cache_files]))"""
    processes = [in_another_process(code, HF_DATASETS_CACHE=str(cache)) for _ in range(2)]
    lengths, fingerprints, files = zip(*(json.loads(output_of(p)) for p in processes), strict=True)
    assert set(lengths) == {generated.number_of_images(np.arange(60)).sum()}
    assert len(set(fingerprints)) == 1 and files[0] == files[1]
    (folder,) = (cache / "generated").iterdir()
    assert len(list(folder.iterdir())) == 1


def test_unknown_split(cache):
    with pytest.raises(UserError, match="validation"):
        generated.build(3, "validation")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("generated", (1000, 64, None)),
        ("generated:2000", (2000, 64, None)),
        ("generated:2000:112", (2000, 112, None)),
        ("generated:2000:112:1", (2000, 112, 1)),
        ("generated:2000:112:2.5", (2000, 112, 2.5)),
    ],
)
def test_parse(name, expected):
    assert generated.parse(name) == expected


@pytest.mark.parametrize(
    "name", ["generate", "generated:", "generated:x", "generated:1", "generated:10:8", "generated:10:64:0",
             "generated:10:64:", "generated:10:64:0.9", "generated:10:64:1000", "generated:10:64:1:1",
             "generated:10:64:.5", "generated:-5", "generated: 5", "generated:10:",
             "generated:٣٣", "generated:" + "9" * 5000]
)  # fmt: skip
def test_malformed_name(name):
    with pytest.raises(UserError, match="generated:2000:64"):
        generated.parse(name)
