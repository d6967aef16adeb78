"""What the script that measures says of people who are told apart with ease, and what it plants."""

import datasets
import numpy as np

from tests.cleaning.planted_set import write_planted
from tests.cleaning.quality import measure, plant
from tests.cleaning.sets import people, write_set


def test_all_that_is_planted_is_found_where_people_are_far_apart(tmp_path):
    rng = np.random.default_rng(0)
    _, whose, vectors = people(rng, 200, 64, noise=0.3)
    write_set(tmp_path / "set", whose, vectors)
    name, wrong, person = plant(whose)
    assert (len(wrong), len(person)) == (round(0.05 * len(whose)), 10)
    names = np.array([person.get(each, each) for each in name])
    np.testing.assert_array_equal(np.flatnonzero(names != whose), np.sort(wrong))
    counted = measure(tmp_path / "set", tmp_path / "out", ["--find", "[mislabelled,merge]"])
    assert (counted["wrong labels"], counted["splits"]) == (len(wrong), 10)
    assert counted["of them found"] > 0.8 and counted["precision"] > 0.8 and counted["given to the right person"] > 0.8
    assert counted["of these found"] == 1 and counted["precision of merges"] > 0.5


def test_a_set_with_errors_is_the_same_images_under_other_labels(tmp_path):
    whose = np.repeat(np.arange(40), 5)
    images = datasets.Features(image=datasets.Value("string"), label=datasets.Value("int64"))
    for split, labels in (("train", whose), ("test", whose[:5])):
        rows = {"image": [f"{split} {row}" for row in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, images).to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    write_planted(tmp_path / "set", tmp_path / "planted")
    before, after = (
        datasets.load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "cache")) for name in ("set", "planted")
    )
    assert after["train"]["label"][:] == plant(whose)[0].tolist() != whose.tolist()
    assert after["train"]["image"][:] == before["train"]["image"][:] and after["test"][:] == before["test"][:]
