"""All that is proposed for made-up people against a slow reference, and against what was planted."""

import errno
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ffc_ds.cleaning import run as module
from ffc_ds.cleaning.run import clean
from ffc_ds.cleaning.settings import parse_settings
from ffc_ds.distributed import rank
from ffc_ds.errors import UserError
from tests.cleaning.sets import people, unit, write_set
from tests.launched import train_ranks
from tests.ranks import run_ranks

BELONGS, STRANGER, SAME_PERSON, SAME_IMAGE = 0.5, 0.2, 0.7, 0.98


def planted(seed=0, identities=150, dim=64):
    """Names and vectors with 5 % wrong labels, 5 % split people, strangers and images that come again; the people of
    whom another set has images. Returns names, vectors, and what was planted."""
    rng = np.random.default_rng(seed)
    directions, whose, vectors = people(rng, identities, dim, noise=0.8)
    names, several = whose.copy(), np.flatnonzero(np.bincount(whose) >= 8)
    split = rng.choice(several, identities // 20, replace=False)
    for number, identity in enumerate(split):
        names[np.flatnonzero(whose == identity)[::2]] = identities + number
    large = np.flatnonzero(np.isin(whose, np.setdiff1d(several, split)))
    chosen = rng.permutation(large)[: len(names) // 10]
    wrong, strange = np.split(chosen, 2)
    names[wrong] = (names[wrong] + 1 + rng.integers(identities - 1, size=len(wrong))) % identities
    vectors[strange] = unit(rng.normal(size=(len(strange), dim)))
    two = np.flatnonzero(np.bincount(whose) == 2)[:4]  # people of whose two images one is another's: nobody knows which
    vectors[np.searchsorted(whose, two)] = unit(rng.normal(size=(len(two), dim)))
    # An image beyond the other half of a split person, which is to be joined with its own.
    first, second = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    angles = np.radians([0] * 4 + [65] + [40] * 4)
    vectors = np.concatenate([vectors, np.cos(angles)[:, None] * first + np.sin(angles)[:, None] * second])
    names, beyond = np.concatenate([names, [900] * 5 + [901] * 4]), len(names) + 4
    again = rng.choice(len(whose), 40)
    names = np.concatenate([names, np.where(rng.random(40) < 0.5, names[again], rng.integers(identities, size=40))])
    vectors = np.concatenate([vectors, unit(vectors[again] + 0.05 * rng.normal(size=(40, dim)) / np.sqrt(dim))])
    return (
        names,
        vectors.astype(np.float32),
        directions,
        {"wrong": wrong, "split": split, "whose": whose, "beyond": beyond, "two": two},
    )


def around(vectors, counted, image, own_images):
    """The sum of those images of an identity that count, but for one."""
    others = [each for each in own_images if counted[each] and each != image]
    return unit(vectors[others].sum(0, keepdims=True))[0] if others else None


def centers(names, vectors):
    """The definition: of each identity the center and how many agree, of each image the cosine with the others."""
    counted, own, agreeing, found = np.ones(len(names), bool), np.full(len(names), np.nan), {}, {}
    for last in (False, True):
        for name in np.unique(names):
            images = np.flatnonzero(names == name)
            for image in images:
                center = around(vectors, counted, image, images)
                own[image] = np.nan if center is None else vectors[image] @ center
            if last:
                found[name] = around(vectors, counted, None, images)
            else:
                agrees = own[images] >= BELONGS
                agreeing[name] = agrees.sum() if agrees.sum() >= 2 else 0
                counted[images] = agrees if agrees.sum() >= 2 else True
    return found, own, agreeing


def best_before(order, vectors, least):
    """Each of the order with the most similar of those before it."""
    cosines = vectors @ vectors.T
    found = {}
    for place, one in enumerate(order):
        if place and cosines[one, order[:place]].max() >= least:
            found[one] = order[cosines[one, order[:place]].argmax()]
    return found


def reference(names, vectors, others=None, joined=True):
    """{kind: {identity or image: what it is proposed for}}; `joined` if merges are looked for, too."""
    vectors = vectors.astype(np.float64)
    found, own, agreeing = centers(names, vectors)
    identities = np.array(sorted(found))
    matrix = np.stack([found[name] for name in identities])
    sizes = np.array([np.sum(names == name) for name in identities])
    merges = best_before(np.argsort(-sizes, kind="stable").tolist(), matrix, SAME_PERSON)

    def end(identity):
        return end(merges[identity]) if joined and identity in merges else identity

    mislabelled, stranger = {}, {}
    for image in np.flatnonzero(own < BELONGS):
        home = int(np.searchsorted(identities, names[image]))
        cosines = matrix @ vectors[image]
        cosines[home] = -1
        other = int(cosines.argmax())
        if cosines[other] < BELONGS:
            if own[image] < STRANGER and agreeing[names[image]]:
                stranger[image] = None
        elif end(other) != end(home):
            mislabelled[image] = identities[other]
    order = np.argsort(-np.nan_to_num(own, nan=-2).astype(np.float32), kind="stable").tolist()
    kinds = {"merge": {identities[one]: identities[other] for one, other in merges.items()}}
    kinds |= {"mislabelled": mislabelled, "stranger": stranger, "duplicate": best_before(order, vectors, SAME_IMAGE)}
    if others is not None:
        theirs, *_ = centers(*others)
        cosines = matrix @ np.stack([theirs[name] for name in sorted(theirs)]).T
        near = np.flatnonzero(cosines.max(1) >= SAME_PERSON)
        kinds["overlap"] = {identities[one]: sorted(theirs)[cosines[one].argmax()] for one in near}
    return kinds


def found_in(folder):
    """What was written, in the form of `reference`."""
    kinds = {}
    for each in pq.read_table(folder / "proposals.parquet").to_pylist():
        by_image = each["kind"] in ("mislabelled", "stranger", "duplicate")
        what = each["row"] - 10 if by_image else int(each["identity"])
        other = each["other_row"] - 10 if each["kind"] == "duplicate" else each["other_identity"]
        kinds.setdefault(each["kind"], {})[what] = None if other is None else int(other)
        assert each["accepted"] and each["path"] == f"image_{each['row'] - 10}"
    return kinds


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    names, vectors, directions, truth = planted()
    write_set(folder / "train", names, vectors)
    rng = np.random.default_rng(1)
    whose = np.repeat(np.arange(0, 60), 3)
    bench = unit(
        np.concatenate([directions[:20], unit(rng.normal(size=(40, 64)))])[whose] + 0.08 * rng.normal(size=(180, 64))
    )
    write_set(folder / "bench", whose + 1000, bench.astype(np.float32), files=1)
    return folder, (names, vectors), (whose + 1000, bench), truth


def test_all_that_is_proposed_on_two_ranks_is_what_the_definition_says(sets, tmp_path):
    folder, ours, theirs, truth = sets
    line = ["--embeddings", folder / "train", "--against", folder / "bench", "--output_dir", tmp_path / "out"]
    for each in train_ranks(2, *map(str, line), "--local_rank=0", script="launch/clean.py"):
        assert each.code == 0, each.stderr[-3000:]
    expected = reference(*ours, theirs)
    assert found_in(tmp_path / "out") == expected
    assert all(expected.values()) and {path.name for path in (tmp_path / "out").iterdir()} == {
        "proposals.parquet",
        "summary.json",
    }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == len(ours[0]) and summary["proposals"]["merge"] == len(expected["merge"])

    wrong, found = truth["wrong"], expected["mislabelled"]
    right = [image for image in wrong if found.get(image) == truth["whose"][image]]
    assert len(right) > 0.9 * len(wrong)
    assert expected["merge"][901] == 900 and truth["beyond"] not in found
    assert not set(np.flatnonzero(np.isin(truth["whose"], truth["two"]))) & set(expected["stranger"])
    joined = {frozenset(pair) for pair in expected["merge"].items()}
    assert joined >= {frozenset((identity, 150 + number)) for number, identity in enumerate(truth["split"])}
    assert {identity for identity in range(20) if np.sum(ours[0] == identity) > 4} <= set(expected["overlap"])


def run(*line):
    clean(parse_settings([*map(str, line)]))


def test_only_what_is_asked_for_is_looked_for(sets, tmp_path, capsys):
    folder, ours, _, truth = sets
    line = ["--embeddings", folder / "train", "--output_dir", tmp_path / "out", "--find", "[mislabelled,stranger]"]
    run(*line, "--pictures", "0")
    expected = reference(*ours, joined=False)
    assert found_in(tmp_path / "out") == {kind: expected[kind] for kind in ("mislabelled", "stranger")}
    assert truth["beyond"] in expected["mislabelled"]  # nobody says that its people are one
    assert "without pictures" not in capsys.readouterr().out


def test_results_are_there_though_scratch_cannot_be_removed(sets, tmp_path, monkeypatch, capsys):
    folder, *_ = sets
    whole = os.rmdir

    def rmdir(path, **how):
        if str(path).endswith("scratch"):
            raise OSError(errno.ENOTEMPTY, "as on NFS, while a file in it is mapped")
        whole(path, **how)

    monkeypatch.setattr(os, "rmdir", rmdir)
    run("--embeddings", folder / "train", "--output_dir", tmp_path / "out", "--find", "[stranger]")
    assert {"proposals.parquet", "summary.json"} < {path.name for path in (tmp_path / "out").iterdir()}
    assert "without pictures: --data" in capsys.readouterr().out


def on_another_host(line):
    own = module.this_host()
    module.this_host = lambda: own if rank() == 0 else "another"
    try:
        run(*line)
    except UserError as error:
        return error.shared, str(error)


def test_several_hosts_are_refused(sets, tmp_path):
    folder, *_ = sets
    line = ["--embeddings", folder / "train", "--output_dir", tmp_path / "out"]
    for shared, message in run_ranks(2, on_another_host, line):
        assert shared and message.startswith("rank 1 is on")
    assert not list(tmp_path.iterdir())


def test_half_precision_and_names_that_are_texts(sets, tmp_path):
    folder, (names, vectors), *_ = sets
    write_set(tmp_path / "set", [f"person {each}" for each in names], vectors, dtype=np.float16)
    run("--embeddings", tmp_path / "set", "--output_dir", tmp_path / "out", "--find", "[mislabelled]")
    found = pq.read_table(tmp_path / "out" / "proposals.parquet")
    images = {row - 10 for row in found["row"].to_pylist()}
    assert len(images ^ set(reference(names, vectors, joined=False)["mislabelled"])) < 3
    assert found["identity"].to_pylist() == [f"person {names[row - 10]}" for row in found["row"].to_pylist()]


def no_embeddings(folder):
    path = folder / "train-00001-of-00003.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["embedding"]), path)


def not_finite(folder):
    path = folder / "train-00001-of-00003.parquet"
    table = pq.read_table(path)
    values = np.stack(table["embedding"].to_numpy())
    values[3, 5] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    pq.write_table(table.set_column(3, "embedding", column), path)


def nothing(folder):
    for path in folder.iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)


def damaged(column):
    """What spoils a column, and leaves what a file says of itself."""

    def spoil(folder):
        path = folder / "train-00001-of-00003.parquet"
        group = pq.read_metadata(path).row_group(0)
        (chunk,) = (
            each
            for each in map(group.column, range(group.num_columns))
            if each.path_in_schema.partition(".")[0] == column
        )
        with path.open("r+b") as file:
            file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
            file.write(b"\xff" * chunk.total_compressed_size)

    return spoil


damaged_paths = damaged("path")


def another_dimension(folder):
    write_set(folder, np.zeros(9, int), np.eye(9, 32), files=3)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_embeddings, "00001-of-00003.parquet has no column embedding, only row, path, name, norm"),
        (not_finite, "00001-of-00003.parquet has embeddings that are missing or not finite"),
        (damaged("name"), "train/train-00001-of-00003.parquet cannot be read"),
        (damaged("embedding"), "train/train-00001-of-00003.parquet cannot be read"),
        (damaged_paths, "train/train-00001-of-00003.parquet cannot be read"),
        (nothing, "train holds no embeddings"),
        (another_dimension, "have 32 numbers, those of .*bench 64"),
        (lambda folder: (folder / "train-00002-of-00003.parquet").unlink(), "holds 2 files of 3"),
        (lambda folder: (folder / "train-00002-of-00003.parquet").write_bytes(b"PAR1"), "cannot be read"),
        (lambda folder: (folder.parent / "out").mkdir(), "out exists already"),
    ],
)
def test_what_cannot_be_used_is_refused_on_both_ranks(sets, tmp_path, spoil, reason):
    folder, (names, vectors), *_ = sets
    write_set(tmp_path / "train", names, vectors)
    spoil(tmp_path / "train")
    line = ["--embeddings", tmp_path / "train", "--against", folder / "bench", "--output_dir", tmp_path / "out"]
    if spoil is damaged_paths:  # which the first rank alone reads
        first, second = train_ranks(2, *map(str, line), script="launch/clean.py")
        assert first.code == second.code == 2
        assert (
            reason in first.stderr
            and "cannot be written" not in first.stderr
            and "Traceback" not in first.stderr + second.stderr
        )
    else:
        with pytest.raises(UserError, match=reason):
            run(*line)
    assert not list(tmp_path.glob(".out*")) and not (tmp_path / "out" / "proposals.parquet").exists()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"weights": "b"}, "are of two models: embed both sets alike"),
        ({"channels": "bgr"}, r"are of one model in two ways \(channels\)"),
        ({"content": "y", "flip": True, "dtype": "float32"}, None),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(sets, tmp_path, other, reason):
    folder, (names, vectors), *_ = sets
    about = {"weights": "a", "channels": "rgb", "content": "x", "flip": False, "dtype": "float16"}
    for name, made_of in (("ours", about), ("theirs", about | other)):
        for path in write_set(tmp_path / name, names, vectors).iterdir():
            pq.write_table(pq.read_table(path).replace_schema_metadata({"ffc_ds": json.dumps(made_of)}), path)
    line = ["--embeddings", tmp_path / "ours", "--against", tmp_path / "theirs", "--output_dir", tmp_path / "out"]
    if reason is None:
        run(*line)
        return
    with pytest.raises(UserError, match=reason):
        run(*line)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--belongs", "1.5"], "belongs is 1.5; a cosine"),
        (["--stranger", "0.6"], "stranger is 0.6, above belongs 0.5"),
        (["--pictures", "51"], "pictures is 51; a row of the figure has 0 to 50"),
        (["--find", "[]"], r"find is \[\]: name what"),
        (["--find", "[overlap]"], "overlap if and only if --against is given"),
        (["--find", "[overlap,overlap]"], "overlap if and only if --against is given"),
        (["--find", "[merge,overlap]"], "overlap if and only if --against is given"),
        (["--find", "[merge]", "--against", "."], "overlap if and only if --against is given"),
        (["--find", "[twins]"], "find"),
        (
            ["--find", "overlap"],
            r"find is overlap; it should be a list of some of 'mislabelled', .*'overlap', as \[A,B\]",
        ),
        (["--embeddings", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_settings_that_cannot_be(tmp_path, more, reason):
    with pytest.raises(UserError, match=reason):
        run("--embeddings", tmp_path, "--output_dir", tmp_path / "out", *more)
