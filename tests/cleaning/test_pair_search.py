"""Searches against all cosines at once, in float64."""

import numpy as np
import pytest
import torch

from ffc_ds.cleaning import search as module
from ffc_ds.cleaning.search import Search, Vectors
from tests.cleaning.sets import people, unit
from tests.ranks import run_ranks

LEAST = 0.9


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other at every small product take seconds on cores that others use, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors_of(seed, dim):
    """People, some of whose images come again, one of them 60 times."""
    rng = np.random.default_rng(seed)
    _, _, vectors = people(rng, 40, dim, noise=0.7)
    again = vectors[rng.integers(0, len(vectors), 60)]
    close = unit(again[:30] + 0.3 * rng.normal(size=(30, dim)) / np.sqrt(dim))
    return rng.permutation(np.concatenate([vectors, again, close, np.repeat(vectors[:1], 60, axis=0)]))


def look(vectors):
    tensor = torch.from_numpy(vectors).float()
    return lambda numbers: tensor[torch.from_numpy(numbers)]


def search(folder, vectors, order, barred, earlier, block):
    looked, cpu = look(vectors), torch.device("cpu")
    queries = Vectors(looked, order)
    keys = queries if earlier else Vectors(looked, np.arange(len(vectors)))
    return Search(queries, keys, LEAST, barred, earlier, block).run(folder / "scratch", cpu, "search")


def check(found, vectors, order, barred, earlier):
    cosines = vectors[order] @ (vectors[order] if earlier else vectors).T
    if earlier:
        cosines[np.triu_indices(len(order))] = -np.inf
    if barred is not None:
        cosines[np.arange(len(order)), barred] = -np.inf
    best = np.where(cosines.max(1) >= LEAST, cosines.max(1), -np.inf)
    assert 50 < np.isfinite(best).sum() < len(best)
    np.testing.assert_allclose(found.cosine, best, atol=1e-5)
    np.testing.assert_array_equal(found.key >= 0, np.isfinite(best))
    there = np.flatnonzero(found.key >= 0)
    place = np.argsort(order)[found.key[there]] if earlier else found.key[there]
    np.testing.assert_allclose(cosines[there, place], best[there], atol=1e-5)


@pytest.mark.parametrize(("dim", "block"), [(8, 64), (160, 64), (160, 1000)])
@pytest.mark.parametrize("earlier", [False, True])
def test_the_best_key_is_found(dim, block, earlier, tmp_path):
    vectors = vectors_of(dim, dim)
    order = np.random.default_rng(1).permutation(len(vectors))
    barred = None if earlier else order
    check(search(tmp_path, vectors, order, barred, earlier, block), vectors, order, barred, earlier)


def test_no_bound_is_below_the_cosine_however_little_lies_outside():
    """Pairs whose rests are parallel, so that the bound is the cosine, and as small as 1e-6."""
    rng = np.random.default_rng(4)
    axes = np.linalg.qr(rng.normal(size=(128, 32)))[0]
    inside, rests = unit(rng.normal(size=(600, 31))), 10 ** rng.uniform(-6, 0, size=(600, 1))
    vectors = unit(np.sqrt(1 - rests**2) * inside @ axes[:, :31].T + rests * axes[:, 31:].T)
    projected = module._project(torch.from_numpy(vectors).float(), torch.from_numpy(axes[:, :31]).float())
    bounds = (projected @ projected.T).numpy()
    assert (bounds >= vectors @ vectors.T - module.SLACK).all()


def test_a_sample_reaches_from_the_first_to_the_last():
    vectors = Vectors(lambda numbers: torch.from_numpy(numbers), np.arange(8 * module.SAMPLE))
    sample = vectors.sample(100)
    assert 50 < len(sample) <= 100 and sample[-1] > 7.8 * module.SAMPLE
    assert len(Vectors(vectors.unit, np.arange(7)).sample(7)) == 7


def test_few_numbers_are_enough_for_most_pairs(tmp_path, monkeypatch):
    compared, vectors = [], vectors_of(3, 160)
    order, whole = np.arange(len(vectors)), Search._compare
    monkeypatch.setattr(module, "WIDTHS", (16, 32))

    def counted(self, bounds, *rest):
        compared.append((bounds >= LEAST - module.SLACK).sum().item())
        whole(self, bounds, *rest)

    monkeypatch.setattr(Search, "_compare", counted)
    check(search(tmp_path, vectors, order, order, False, 64), vectors, order, order, False)
    written = (tmp_path / "scratch").stat().st_size / len(vectors) / 4
    assert written in (16, 32)
    assert sum(compared) < 2 * (vectors @ vectors.T >= LEAST).sum()


def test_ranks_share_a_search(tmp_path):
    vectors = vectors_of(5, 96)
    order = np.random.default_rng(2).permutation(len(vectors))
    first, *others = run_ranks(3, search, tmp_path, vectors, order, None, True, 32)
    check(first, vectors, order, None, True)
    for found in others:
        np.testing.assert_array_equal(found.key, first.key)


def test_nobody_to_search_for(tmp_path):
    found = search(tmp_path, vectors_of(0, 8), np.empty(0, np.int64), None, False, 32)
    assert len(found.cosine) == len(found.key) == 0
