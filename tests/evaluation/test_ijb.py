"""An IJB-like folder: what is read is what was written; templates as published; every wrong shape is refused."""

import shutil

import numpy as np
import pytest
import torch

from ffc_ds.data.augment import to_input
from ffc_ds.data.decoding import decode
from ffc_ds.encoders.net import NetEncoder
from ffc_ds.errors import UserError
from ffc_ds.evaluation.ijb import read_ijb
from ffc_ds.evaluation.protocols import evaluate_ijb
from ffc_ds.evaluation.templates import Embedder
from ffc_ds.models.opening import load_model
from tests.protocol_data import ijb_folder, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ijb") / "IJBC"


@pytest.fixture(scope="module")
def written(folder):
    return ijb_folder(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def copy(folder, written, tmp_path):
    return shutil.copytree(folder, tmp_path / "IJBC")


def insightface_templates(model, ijb, written, detector_score, flip, feature_norm):
    """The published aggregation, restated template by template and medium by medium."""
    features = {}
    for row, (name, *_) in enumerate(written["listed"]):
        pixels = torch.tensor(decode(ijb.templates.images.encoded([row])[0], 32))[None]
        inputs = to_input(pixels)
        feature = model(inputs).embeddings[0] + (model(inputs.flip(3)).embeddings[0] if flip else 0)
        score = written["points"][row][-1] if detector_score else 1
        features[name] = score * (feature if feature_norm else feature / feature.norm()).double().numpy()
    templates = {}
    for number in written["owner"]:
        media = {}
        for name, template, medium in written["listed"]:
            if template == number:
                media.setdefault(medium, []).append(features[name])
        total = np.sum([np.mean(each, axis=0) for each in media.values()], axis=0)
        templates[number] = total / np.linalg.norm(total)
    return templates


@pytest.mark.parametrize(
    ("detector_score", "flip", "feature_norm"), [(True, True, True), (False, False, True), (True, True, False)]
)
def test_templates_are_those_of_the_published_aggregation(folder, written, model, detector_score, flip, feature_norm):
    ijb = read_ijb(str(folder), detector_score, feature_norm)
    embedder = Embedder(NetEncoder(model), batch_size=7, flip=flip)
    found = embedder.templates(ijb.templates)
    expected = insightface_templates(model, ijb, written, detector_score, flip, feature_norm)
    np.testing.assert_allclose(found, np.stack(list(expected.values())), atol=1e-5)

    verification, *searches = evaluate_ijb(embedder, ijb)
    scores = [expected[a] @ expected[b] for a, b, _ in written["pairs"]]
    same = np.array([label == 1 for *_, label in written["pairs"]])
    impostor = np.sort(np.array(scores)[~same])[::-1]
    tar = verification.numbers["tar_at_far"]
    assert {rate for rate, value in tar.items() if value is None} == {"1e-06", "1e-05", "0.0001", "0.001"}
    assert tar["0.01"] == np.mean(np.array(scores)[same] > impostor[3])
    assert tar["0.1"] == np.mean(np.array(scores)[same] > impostor[30])
    names = [f"{folder} G1", f"{folder} G2", f"{folder}, mean of galleries"]
    assert [each.name for each in searches] == [*names, f"{folder}, galleries joined as by InsightFace"]
    owner = written["owner"]
    for result, gallery in zip(searches, ("gallery_G1", "gallery_G2"), strict=False):
        people = [owner[t] for t in written[gallery]]
        ranks = []
        for probe in written["probe_mixed"]:
            against = [expected[probe] @ expected[t] for t in written[gallery]]
            if owner[probe] in people:
                mate = against[people.index(owner[probe])]
                ranks.append(sum(score >= mate for score in against))
        expected_rank = {k: np.mean(np.array(ranks) <= int(k)) for k in ("1", "5", "10")}
        assert result.numbers["rank"] == pytest.approx(expected_rank)
        assert (result.numbers["mated_searches"], result.numbers["non_mated_searches"]) == (6, 6)
    mean = searches[2].numbers["rank"]["1"]
    assert mean == pytest.approx(np.mean([each.numbers["rank"]["1"] for each in searches[:2]]))
    assert set(searches[2].numbers["tpir_at_fpir"].values()) == {None}  # six searches resolve nothing


def test_everything_is_joined_by_name_not_by_place(folder, copy):
    before = read_ijb(str(folder))
    points = copy / "meta" / "ijbc_name_5pts_score.txt"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(reversed(lines)) + "unused.jpg " + " ".join(map(str, range(11))) + "\n")
    after = read_ijb(str(copy))
    np.testing.assert_array_equal(after.templates.weight, before.templates.weight)
    np.testing.assert_array_equal(after.templates.images.landmarks, before.templates.images.landmarks)


def test_either_half_of_the_protocol_alone(folder, copy):
    for path in (copy / "meta").glob("*_1N_*"):
        path.unlink()
    alone = read_ijb(str(copy))
    assert alone.probes is None and alone.same.sum() == 12
    for path in (folder / "meta").glob("*_1N_*"):
        shutil.copy(path, copy / "meta")
    (copy / "meta" / "ijbc_template_pair_label.txt").unlink()
    search = read_ijb(str(copy))
    assert search.same is None and set(search.galleries) == {"G1", "G2"}
    for path in (copy / "meta").glob("*_1N_*"):
        path.unlink()
    with pytest.raises(UserError, match="has neither ijbc_template_pair_label.txt for 1:1 nor ijbc_1N_probe_mixed.csv"):
        read_ijb(str(copy))


@pytest.mark.parametrize("change", [lambda old: b"\xef\xbb\xbf" + old, lambda old: old.replace(b"\n", b"\r\n")])
def test_marks_of_windows_do_no_harm(folder, copy, change):
    for path in (copy / "meta").iterdir():
        path.write_bytes(change(path.read_bytes()))
    before, after = read_ijb(str(folder)), read_ijb(str(copy))
    assert (before.templates.images.names == after.templates.images.names).all()
    np.testing.assert_array_equal(before.templates.weight, after.templates.weight)
    for part in ("left", "right", "same"):
        np.testing.assert_array_equal(getattr(before, part), getattr(after, part))
    np.testing.assert_array_equal(before.galleries["G2"].subjects, after.galleries["G2"].subjects)


def test_tabs_separate_as_well(folder, copy):
    for path in (copy / "meta").glob("*.txt"):
        path.write_text(path.read_text().replace(" ", "\t"))
    np.testing.assert_array_equal(read_ijb(str(folder)).templates.group, read_ijb(str(copy)).templates.group)


def test_ijbb_calls_its_galleries_otherwise(tmp_path):
    written = ijb_folder(tmp_path / "IJBB", "ijbb")
    read = read_ijb(str(tmp_path / "IJBB"))
    assert {name: len(gallery.templates) for name, gallery in read.galleries.items()} == {"S1": 6, "S2": 6}
    assert read.galleries["S2"].subjects.tolist() == [written["owner"][t] for t in written["gallery_S2"]]
    (tmp_path / "IJBB" / "meta" / "ijbb_1N_gallery_S1.csv").unlink()
    with pytest.raises(UserError, match="some of the files for 1:N, but not ijbb_1N_gallery_S1.csv"):
        read_ijb(str(tmp_path / "IJBB"))


def first_line(text):
    return lambda old: text + old.partition("\n")[2]


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("face_tid_mid.txt", None, "must hold one file called ijbb_face_tid_mid.txt or ijbc"),
        ("face_tid_mid.txt", lambda old: "", "Empty CSV file"),
        (
            "face_tid_mid.txt",
            first_line("1.jpg 3\n"),
            "Expected 3 columns, got 2.*: each line must hold image, template",
        ),
        ("face_tid_mid.txt", first_line("1.jpg three 4\n"), "invalid value 'three'"),
        ("face_tid_mid.txt", first_line("999.jpg 3 4\n"), "5pts_score.txt has no line for image 999.jpg"),
        ("face_tid_mid.txt", lambda old: "version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        ("name_5pts_score.txt", None, "name_5pts_score.txt cannot be used .No such file"),
        ("name_5pts_score.txt", first_line("1.jpg 1 2 3 4 5 6 7 8 9 10\n"), "Expected 12 columns, got 11"),
        ("name_5pts_score.txt", first_line("1.jpg 1 2 3 4 5 6 7 8 9 10 nan\n"), "image 1.jpg are not finite"),
        (
            "name_5pts_score.txt",
            first_line("1.jpg" + " 5" * 11 + "\n"),
            "image 1.jpg are not finite, or all in one place",
        ),
        ("name_5pts_score.txt", lambda old: old + old.partition("\n")[0] + "\n", "more than one line for some image"),
        ("template_pair_label.txt", first_line("3 10\n"), "each line must hold first template, second template, label"),
        ("template_pair_label.txt", first_line("3 10 2\n"), "labels must be 0 and 1"),
        ("template_pair_label.txt", lambda old: "3 10 1\n", "labels must be 0 and 1, and both must occur"),
        ("template_pair_label.txt", first_line("3 4 1\n"), "names a template without images, 4 .1 such"),
        ("1N_gallery_G2.csv", None, "some of the files for 1:N, but not ijbc_1N_gallery_G2.csv"),
        ("1N_gallery_G1.csv", lambda old: old.splitlines()[0] + "\n", "names no template"),
        ("1N_gallery_G1.csv", lambda old: old + "4,100,x\n", "names a template without images, 4"),
        ("1N_gallery_G1.csv", lambda old: old + "3,777,x\n", "template 3 has more than one subject"),
        ("1N_probe_mixed.csv", lambda old: "TEMPLATE_ID\n3\n", "each line must hold template, subject"),
        ("1N_probe_mixed.csv", None, "some of the files for 1:N, but not ijbc_1N_probe_mixed.csv"),
    ],
)
def test_every_wrong_shape_is_refused_with_the_reason(copy, file, change, reason):
    path = copy / "meta" / f"ijbc_{file}"
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=reason) as error:
        read_ijb(str(copy))
    assert str(copy) in str(error.value)


def test_missing_images_and_folders_are_refused_before_anything_is_embedded(copy, tmp_path):
    (copy / "loose_crop" / "5.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of \d+ images, 5.jpg first"):
        read_ijb(str(copy))
    shutil.rmtree(copy / "loose_crop")
    with pytest.raises(UserError, match="loose_crop: No such file"):
        read_ijb(str(copy))
    with pytest.raises(UserError, match="give the folder that holds meta and loose_crop"):
        read_ijb(str(tmp_path))
