"""What the script that measures says of people who are told apart with ease, and what it plants."""

import numpy as np

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
