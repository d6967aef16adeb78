"""6,000 pairs of real faces by InsightFace's published method; videos, identification, and what a result shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from ffc_ds.data.augment import to_input
from ffc_ds.data.decoding import decode_many
from ffc_ds.encoders.net import NetEncoder
from ffc_ds.evaluation.image_files import read_distractors, read_probes
from ffc_ds.evaluation.pair_files import read_pair_bin
from ffc_ds.evaluation.pair_lists import read_pairs
from ffc_ds.evaluation.protocols import identify_among, verify_sets
from ffc_ds.evaluation.templates import Embedder
from ffc_ds.models.opening import load_model
from tests.protocol_data import person_folders, tiny_model, write_lines

LFW = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lfw" / "heldout.bin"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    model = load_model(str(tiny_model(tmp_path_factory.mktemp("model"))))
    return Embedder(NetEncoder(model))


def embeddings(model, encoded):
    """As InsightFace embeds: image and mirror image, summed in double precision, scaled to length 1."""
    inputs = to_input(torch.from_numpy(decode_many(encoded, 32)))
    found = [
        np.concatenate([model(x).embeddings.double() for x in each.split(500)]) for each in (inputs, inputs.flip(3))
    ]
    total = found[0] + found[1]
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def published_method(embedded, same):
    """Ten folds without shuffling; of 400 thresholds on the squared distance, the best on nine judges the tenth."""
    distances = np.square(embedded[::2] - embedded[1::2]).sum(1)
    thresholds, accuracies, chosen = np.arange(0, 4, 0.01), [], []
    for train, test in KFold(10, shuffle=False).split(distances):
        correct = [np.mean((distances[train] < threshold) == same[train]) for threshold in thresholds]
        chosen.append(thresholds[np.argmax(correct)])
        accuracies.append(np.mean((distances[test] < chosen[-1]) == same[test]))
    return {"accuracy": np.mean(accuracies), "accuracy_std": np.std(accuracies), "threshold": np.mean(chosen)}


@pytest.mark.skipif(not LFW.exists(), reason="the shared LFW pairs are not here")
def test_lfw_gives_the_accuracy_of_the_published_method(embedder):
    encoded, same = read_pair_bin(LFW)
    places = {image: place for place, image in enumerate(dict.fromkeys(encoded))}
    embedded = embeddings(embedder.encoder.model, list(places))[[places[image] for image in encoded]]
    expected = published_method(embedded, same)
    result = verify_sets(embedder, read_pairs(str(LFW)))
    # Of this net's thresholds many are about as good, and the published grid of 0.01 takes another one.
    assert abs(result.numbers["accuracy"] - expected["accuracy"]) < 0.005 < expected["accuracy_std"]
    assert abs(result.numbers["threshold"] - expected["threshold"]) < 0.05
    assert result.numbers["pairs"] == 6000 and 0.55 < expected["accuracy"] < 0.75

    cosines = (embedded[::2] * embedded[1::2]).sum(1)
    assert result.numbers["auc"] == pytest.approx(roc_auc_score(same, cosines), abs=1e-6)
    genuine, impostor = result.hardest.values()
    np.testing.assert_allclose([score for _, score in genuine], np.sort(cosines[same])[:6], atol=1e-5)
    np.testing.assert_allclose([score for _, score in impostor], np.sort(cosines[~same])[:-7:-1], atol=1e-5)
    worst = 2 * np.flatnonzero(same)[cosines[same].argmin()]
    pictures = decode_many(encoded[worst : worst + 2], 112)
    np.testing.assert_array_equal(genuine[0][0], np.concatenate(list(pictures), axis=1))


def test_a_video_is_the_average_of_its_frames(embedder, tmp_path):
    for person in range(4):
        for video in range(2):
            person_folders(tmp_path / "frames", people=1, images=3, first=10 * person + video)
            (tmp_path / f"P{person}").mkdir(exist_ok=True)
            (tmp_path / "frames" / f"Person_{10 * person + video}").rename(tmp_path / f"P{person}" / str(video))
    rows = [(f"P{a}", 0, 1) for a in range(4)] * 3 + [
        (f"P{a}", 0, f"P{b}", 1) for a in range(4) for b in range(4) if a != b
    ]
    write_lines(tmp_path / "pairs.txt", rows)
    result = verify_sets(embedder, read_pairs(str(tmp_path / "pairs.txt")))

    def video(person, number):
        files = sorted((tmp_path / person / str(number)).iterdir())
        mean = embeddings(embedder.encoder.model, [file.read_bytes() for file in files]).mean(0)
        return mean / np.linalg.norm(mean)

    lines = [(row[0], row[1], row[-2] if len(row) == 4 else row[0], row[-1]) for row in rows]
    scores = np.array([video(a, i) @ video(b, j) for a, i, b, j in lines])
    genuine, impostor = result.hardest.values()
    np.testing.assert_allclose([score for _, score in genuine], np.sort(scores[:12])[:6], atol=1e-5)
    np.testing.assert_allclose([score for _, score in impostor], np.sort(scores[12:])[:-7:-1], atol=1e-5)


def test_identification_finds_each_mate_among_distractors(embedder, tmp_path):
    person_folders(tmp_path / "probes", people=6, images=3)
    person_folders(tmp_path / "probes", people=1, images=1, first=6)  # nobody to find
    person_folders(tmp_path / "others", people=8, images=4, first=20)
    probes, subjects = read_probes(str(tmp_path / "probes"))
    others = read_distractors(str(tmp_path / "others"))
    result = identify_among(embedder, probes, subjects, others)
    assert {key: result.numbers[key] for key in ("probes", "mate_pairs", "distractors")} == {
        "probes": 18,
        "mate_pairs": 36,
        "distractors": 32,
    }
    a = embeddings(embedder.encoder.model, [Path(path).read_bytes() for path in probes.paths])
    b = embeddings(embedder.encoder.model, [Path(path).read_bytes() for path in others.paths])
    ranks = [
        1 + np.sum(a[i] @ b.T >= a[i] @ a[j])
        for i in range(18)
        for j in range(18)
        if i != j and Path(probes.paths[i]).parent == Path(probes.paths[j]).parent
    ]
    assert result.numbers["rank"] == pytest.approx({str(k): np.mean(np.array(ranks) <= k) for k in (1, 5, 10)})
    assert result.numbers["tar_at_far"] == {"1e-06": None, "1e-05": None, "0.0001": None}  # 576 impostor pairs
    people = [Path(path).parent for path in probes.paths]
    mates = np.sort([a[i] @ a[j] for i in range(18) for j in range(i) if people[i] == people[j]])
    np.testing.assert_allclose([score for _, score in result.hardest["mates least alike"]], mates[:6], atol=1e-5)
    scores = [score for _, score in result.hardest["distractors most alike"]]
    np.testing.assert_allclose(scores, np.sort((a @ b.T).max(1))[:-7:-1], atol=1e-5)
