"""`--data.*` through the public door: two sets, images that cannot be decoded, rare identities, all augmentation."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import simplejpeg

from ffc_ds.config.settings import parse_config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.opening import open_set
from ffc_ds.data.sampler import Sampler
from ffc_ds.data.training_faces import joined
from ffc_ds.errors import UserError
from tests.launched import TINY, metrics, train, train_tiny

FIRST, STEPS = "generated:40:32", 6
SETTINGS = (
    *("--train.steps", str(STEPS), "--train.checkpoint_every", "2", "--train.keep_checkpoints", "9"),
    *("--data.min_images", "2", "--head.prefill", "0.3", "--data.low_resolution", "0.3", "--data.blur", "0.3"),
    *("--data.grey", "0.3", "--data.colour", "0.3", "--data.max_megapixels", str(32 * 32 / 1e6)),
)


def write_set(folder, damaged):
    """A parquet folder, identities 0 to 19 with two images each and 20 to 24 with one; the damaged rows are
    cut off, or, if they are 4 n + 2, larger than the rest."""
    random = np.random.default_rng(0)
    labels = [*np.repeat(range(20), 2), *range(20, 25)]
    images = [simplejpeg.encode_jpeg(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in labels]
    large = simplejpeg.encode_jpeg(np.zeros((33, 32, 3), np.uint8))
    for row in damaged:
        images[row] = large if row % 4 == 2 else images[row][:300]
    folder.mkdir()
    datasets.Dataset.from_dict({"image": images, "label": labels}).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data path")
    damaged = range(0, 20, 2)
    second = write_set(folder / "second", damaged)
    done = train_tiny(2, folder / "run", *SETTINGS, "--data.train", f"[{FIRST}, {second}]", "--data.workers", "1")
    return folder, second, damaged, done


def test_damaged_images_are_counted_and_named_once(run):
    folder, second, damaged, done = run
    faces = joined([open_set(name, "image", "label") for name in (FIRST, second)], "train", alone=False)
    index = IdentityIndex.build(faces.labels)
    results = json.loads((folder / "run" / "results.json").read_text())
    kept = index.where(index.with_images(2))
    assert (results["identities"], results["images"]) == (kept.identities, len(kept.images))
    assert done.stdout.count(f"{index.identities - kept.identities} of {index.identities} identities left out") == 1

    # rows of the second set follow those of the first
    shown = [Sampler(kept, 24, "instance").plan(step).images - (len(faces) - 45) for step in range(STEPS)]
    expected = np.cumsum([np.isin(images, damaged).sum() for images in shown])
    found = [line["replaced_images"] for line in metrics(folder / "run") if "loss" in line]
    assert found == expected.tolist() and found[-1] > 0
    said = Counter(line for line in done.stdout.splitlines() if "takes its place" in line)
    assert {int(line.split("row ")[1].split()[0]) for line in said} == set(np.concatenate(shown, 1).flat) & set(damaged)
    assert max(said.values()) <= 2  # once for each rank
    reasons = {0: "not a readable image of 300 bytes", 2: "its header announces 32 x 33 pixels"}
    for line in said:
        row = int(line.split("row ")[1].split()[0])
        assert f" of split 'train' of {second}: {reasons[row % 4]}" in line


def test_a_resumed_run_sees_the_same(run):
    folder, second, *_ = run
    again = ("--data.train", f"[{FIRST}, {second}]", "--resume", str(folder / "run" / "checkpoints" / "step-2"))
    train_tiny(2, folder / "again", *SETTINGS, *again, "--data.workers", "2")
    assert metrics(folder / "again") == [line for line in metrics(folder / "run") if line["step"] > 2]


def test_an_identity_without_a_sound_image_is_refused(tmp_path):
    second = write_set(tmp_path / "second", damaged=range(40))
    done = train(2, *TINY, "--data.train", f"[{FIRST}, {second}]", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    message = done.stderr.split("error: ")[1].split("\n\n")[0]
    assert f"of split 'train' of {second}: not a readable image" in message and "no other image" in message


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--data.train", "[]"), "list of different ones"),
        (("--data.train", "[a, b, a]"), "list of different ones"),
        (("--data.min_images", "0"), "data.min_images"),
        (("--data.blur", "1.5"), "data.blur"),
        (("--data.grey", "-0.1"), "data.grey"),
    ],
)
def test_settings_that_cannot_be_used(arguments, mentions):
    with pytest.raises(UserError, match=mentions):
        parse_config(list(arguments))


def test_one_set_or_a_list():
    assert parse_config(["--data.train", "generated:60:32"]).data.train == "generated:60:32"
    assert parse_config(["--data.train", "[a/b, generated:60:32]"]).data.train == ["a/b", "generated:60:32"]
