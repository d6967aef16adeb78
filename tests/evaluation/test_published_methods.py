"""Our figures of IJB, YTF and MegaFace against slow rewritings of the public method, from the same files on disk.

What is rewritten is what the scripts of InsightFace do (ijb_11.py, ijb_1n.py, ytf.py, remove_noises.py with MegaFace's
development kit), file by file and template by template; the net and the alignment are ours.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from ffc_ds.data.augment import to_input
from ffc_ds.data.decoding import decode, decode_many
from ffc_ds.encoders.net import NetEncoder
from ffc_ds.errors import UserError
from ffc_ds.evaluation.alignment import AlignedImages
from ffc_ds.evaluation.ijb import read_ijb
from ffc_ds.evaluation.image_files import ImageFiles, images_below
from ffc_ds.evaluation.noises import leave_out_noises
from ffc_ds.evaluation.pair_lists import read_pairs
from ffc_ds.evaluation.protocols import evaluate_ijb, identify_among, verify_sets
from ffc_ds.evaluation.templates import Embedder
from ffc_ds.models.opening import load_model
from tests.protocol_data import ijb_folder, person_folders, picture, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(tiny_model(tmp_path_factory.mktemp("model"))))


def embedded(model, pixels, flip):
    """Features (float64 [n, D], as long as they are) of uint8 [n, S, S, 3], with those of the mirror images added."""
    inputs = to_input(torch.from_numpy(pixels))
    features = model(inputs).embeddings.double()
    return (features + model(inputs.flip(3)).embeddings.double() if flip else features).numpy()


def normalized(vectors):
    return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))


def words(path, separator=None, heading=0):
    return [line.strip().split(separator) for line in path.read_text().splitlines()[heading:]]


def published_ijb(folder, prefix, galleries, model):
    """ijb_11.py and ijb_1n.py: TAR at the nearest FAR of the curve, rank and TPIR in the joined galleries."""
    meta = folder / "meta"
    listed = words(meta / f"{prefix}_face_tid_mid.txt")
    templates, medias = (np.array([int(line[column]) for line in listed]) for column in (1, 2))
    points = words(meta / f"{prefix}_name_5pts_score.txt")
    landmarks = np.array([[float(x) for x in line[1:-1]] for line in points]).reshape(-1, 5, 2)
    crops = AlignedImages(str(folder / "loose_crop"), [line[0] for line in points], landmarks)
    features = embedded(model, decode_many(crops.encoded(range(len(points))), 32), flip=True)
    features *= np.array([float(line[-1]) for line in points])[:, None]  # line i of both files is image i

    def template(number):
        own, media = features[templates == number], medias[templates == number]
        return normalized(sum(own[media == each].mean(0) for each in np.unique(media)))

    of = {number: template(number) for number in np.unique(templates)}
    pairs = [tuple(map(int, line)) for line in words(meta / f"{prefix}_template_pair_label.txt")]
    scores = np.array([of[a] @ of[b] for a, b, _ in pairs])
    fpr, tpr, _ = roc_curve([label for *_, label in pairs], scores, drop_intermediate=False)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    tar = {f"{far:g}": tpr[np.abs(fpr - far).argmin()] for far in (1e-3, 1e-2, 1e-1)}

    def searched(*names):
        lines = [line for name in names for line in words(meta / f"{prefix}_1N_{name}.csv", ",", heading=1)]
        subject = {int(line[0]): int(line[1]) for line in lines}
        return np.array([of[number] for number in sorted(subject)]), [subject[number] for number in sorted(subject)]

    gallery, gallery_subjects = searched(*galleries)
    probes, probe_subjects = searched("probe_mixed")
    similarity = probes @ gallery.T
    mask = [gallery_subjects.index(subject) for subject in probe_subjects]
    order = np.argsort(-similarity)
    rank = {str(k): np.mean([mask[i] in order[i, :k] for i in range(len(probes))]) for k in (1, 5, 10)}
    genuine = similarity[np.arange(len(probes)), mask].copy()
    similarity[np.arange(len(probes)), mask] = -2
    largest = np.sort(similarity[similarity > -2])[::-1]
    tpir = {f"{far:g}": np.mean(genuine > largest[math.ceil(far * len(probes)) - 1]) for far in (1e-2, 1e-1)}
    return tar, rank, tpir


@pytest.mark.parametrize(("prefix", "galleries"), [("ijbc", ("G1", "G2")), ("ijbb", ("S1", "S2"))])
def test_ijb(model, tmp_path, prefix, galleries):
    folder = tmp_path / prefix.upper()
    ijb_folder(folder, prefix, subjects=100, impostors=2000)
    tar, rank, tpir = published_ijb(folder, prefix, [f"gallery_{name}" for name in galleries], model)
    verification, *_, joined = evaluate_ijb(Embedder(NetEncoder(model)), read_ijb(str(folder)))
    found = verification.numbers["tar_at_far"]
    assert {far: found[far] for far in tar} == pytest.approx(tar, abs=1e-12)
    assert 0 < tar["0.001"] < tar["0.01"] < tar["0.1"] < 1 and found["0.0001"] is None
    assert joined.numbers["rank"] == pytest.approx(rank, abs=1e-12) and 0 < rank["1"] < rank["5"] < 1
    assert joined.numbers["tpir_at_fpir"] == pytest.approx({"0.001": None} | tpir, abs=1e-12) and tpir["0.1"] > 0
    assert (joined.numbers["mated_searches"], joined.numbers["gallery"]) == (100, 100)


def published_ytf(folder, splits, model):
    """ytf.py: a video is the mean of its unit features, scaled; in each split the best threshold on the others."""
    features, rows = {}, words(splits, ",", heading=1)
    for row in rows:
        for video in (row[2].strip(), row[3].strip()):
            if video not in features:
                frames = [decode(file.read_bytes(), 32) for file in sorted((folder / video).iterdir())]
                features[video] = normalized(normalized(embedded(model, np.array(frames), flip=False)).mean(0))
    split, same = (np.array([int(row[column]) for row in rows]) for column in (0, -1))
    distances = np.array([((features[row[2].strip()] - features[row[3].strip()]) ** 2).sum() for row in rows])
    accuracies, on_the_grid = [], []
    for fold in range(1, 11):
        train, test = split != fold, split == fold
        points = np.sort(distances[train])
        for thresholds, into in (((points[1:] + points[:-1]) / 2, accuracies), (np.arange(0, 4, 0.01), on_the_grid)):
            best = max(thresholds, key=lambda t: np.mean((distances[train] < t) == same[train]))
            into.append(np.mean((distances[test] < best) == same[test]))
    return accuracies, on_the_grid


def test_ytf(model, tmp_path):
    rng, videos = np.random.default_rng(0), [(person, video) for person in range(20) for video in range(4)]
    for person, video in videos:
        place = tmp_path / "aligned_images_DB" / f"Person_{person}" / str(video)
        place.mkdir(parents=True)
        for frame in range(rng.integers(1, 5)):
            seed = 1000 * person + 10 * video + frame
            picture(seed, person, 48, 48).save(place / f"aligned_detect_{video}.{frame}.jpg")
    lines = ["split number, pair number, first name, second name, is same"]
    for split in range(1, 11):
        for pair in range(1, 41):
            person, other = rng.choice(20, 2, replace=False)
            a, b = rng.choice(4, 2, replace=False)
            second = f"Person_{person}/{b}" if pair <= 20 else f"Person_{other}/{b}"
            lines.append(f"{split}, {pair}, Person_{person}/{a}, {second}, {int(pair <= 20)}")
    lines[1:] = [lines[1 + i] for i in rng.permutation(400)]  # a split is where it says so, not where it stands
    (tmp_path / "splits.txt").write_text("\r\n".join(lines))
    accuracies, on_the_grid = published_ytf(tmp_path / "aligned_images_DB", tmp_path / "splits.txt", model)
    pairs = read_pairs(str(tmp_path / "splits.txt"), str(tmp_path / "aligned_images_DB"))
    found = verify_sets(Embedder(NetEncoder(model), flip=False), pairs).numbers
    assert found["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12) and found["pairs"] == 400
    assert found["accuracy_std"] == pytest.approx(np.std(accuracies), abs=1e-12)
    assert abs(found["accuracy"] - np.mean(on_the_grid)) < np.std(on_the_grid) and 0.6 < found["accuracy"] < 1


def published_megaface(probes, distractors, model):
    """The development kit: of each person every image once in the gallery, looked for by every other one."""
    own = normalized(embedded(model, decode_many([path.read_bytes() for path in probes], 32), flip=True))
    others = normalized(embedded(model, decode_many([path.read_bytes() for path in distractors], 32), flip=True))
    ranks, mates = [], []
    for i, probe in enumerate(probes):
        for j, mate in enumerate(probes):
            if i != j and probe.parent == mate.parent:
                mates.append(own[i] @ own[j])
                ranks.append(1 + np.sum(own[i] @ others.T > mates[-1]))
    impostors = np.sort((own @ others.T).ravel())[::-1]
    return np.mean(np.array(ranks) == 1), np.mean(np.array(mates) > impostors[int(1e-4 * len(impostors))])


def test_megaface_without_its_noises(model, tmp_path, capsys):
    """The files of InsightFace's test pack: a remark, names alone, and paths, one after a tab."""
    person_folders(tmp_path / "facescrub_images", people=20, images=5, suffix=".png")
    person_folders(tmp_path / "megaface_images" / "100", people=30, images=5, first=50)
    (tmp_path / "facescrub_noises.txt").write_text(
        "#Please follow the rules\nPerson_0_0001.jpg\nPerson 3_0005.png\n"
        + "".join(f"Person_7_{i:04d}.png\n" for i in range(1, 5))
        + "Person_99_0001.png\n"
    )
    (tmp_path / "megaface_noises.txt").write_text(
        "100/Person_50/Person_50_0002.jpg\r\n17\t100/Person_79/Person_79_0005.jpg\r\n"
    )
    lists = [str(tmp_path / f"{kind}_noises.txt") for kind in ("facescrub", "megaface")]
    probes = images_below(tmp_path / "facescrub_images")
    subjects = np.unique([str(Path(path).parent) for path in probes], return_inverse=True)[1]
    distractors = images_below(tmp_path / "megaface_images")
    left = leave_out_noises(lists, ImageFiles(probes, "probes"), subjects, ImageFiles(distractors, "distractors"))
    said = capsys.readouterr()
    assert f"{lists[0]}: left out 6 of 100 probes and 0 of 150 distractors" in said.out + said.err
    assert f"{lists[1]}: left out 0 of 100 probes and 2 of 150 distractors" in said.out + said.err

    gone = {"Person_0_0001", "Person_3_0005", *(f"Person_7_{i:04d}" for i in range(1, 6))}  # nobody is left for the 5th
    gone |= {"Person_50_0002", "Person_79_0005"}
    expected = [[Path(path) for path in paths if Path(path).stem not in gone] for paths in (probes, distractors)]
    assert [list(map(Path, images.paths)) for images in (left[0], left[2])] == expected
    assert [len(each) for each in expected] == [93, 148] and len(left[1]) == 93
    rank, tar = published_megaface(*expected, model)
    found = identify_among(Embedder(NetEncoder(model)), *left).numbers
    assert found["rank"]["1"] == pytest.approx(rank, abs=1e-12) and 0 < rank < 1
    assert found["tar_at_far"]["0.0001"] == pytest.approx(tar, abs=1e-12) and 0 < tar < 1
    assert (found["probes"], found["distractors"]) == (93, 148)


def test_lists_of_noises_that_cannot_be_meant(tmp_path):
    person_folders(tmp_path / "faces", people=2, images=2)
    images = ImageFiles(images_below(tmp_path / "faces"), "faces")
    subjects, path = np.array([0, 0, 1, 1]), tmp_path / "noises.txt"

    def left(text):
        path.write_text(text)
        return leave_out_noises([str(path)], images, subjects, images)

    assert len(left("# nothing\n")[0]) == 4
    with pytest.raises(UserError, match="none of the 2 images in .*noises.txt is a probe or a distractor"):
        left("Person_5_0001.jpg\nPerson_6_0001.jpg\n")
    with pytest.raises(UserError, match="leave nobody to find in faces"):
        left("Person_0_0001.jpg\nPerson_1_0001.jpg\n")
    with pytest.raises(UserError, match="none.txt cannot be read: No such file"):
        leave_out_noises([str(tmp_path / "none.txt")], images, subjects, images)
