"""From images to a cleaned set: `embed.py`, `clean.py`, `prepare_data.py apply`, and what the last one refuses."""

import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ffc_ds.cleaning.run import clean
from ffc_ds.cleaning.settings import parse_settings
from ffc_ds.data.opening import load_faces
from ffc_ds.embedding_set.run import embed_set
from ffc_ds.embedding_set.settings import parse_settings as parse_embedding
from ffc_ds.errors import UserError
from launch.prepare_data import main
from tests.protocol_data import person_folders, tiny_model

COSINES = ["--belongs", "0.8", "--stranger", "0.1", "--same_person", "0.8", "--same_image", "0.99"]
WRONG = {"Person_0_0002": "Person_6", "Person_8_0006": "Person_10"}  # and the folders that they are in


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Faces with two wrong labels, a person in two folders, an image that comes again; the proposals for them, with
    images of Person_9 as a benchmark."""
    folder = tmp_path_factory.mktemp("work")
    faces, model = person_folders(folder / "faces", people=12, images=6), tiny_model(folder / "model")
    for name, wrong in WRONG.items():
        (faces / name[:8] / f"{name}.jpg").rename(faces / wrong / f"{name}.jpg")
    (faces / "Another").mkdir()
    for number in (4, 5, 6):
        (faces / "Person_5" / f"Person_5_000{number}.jpg").rename(faces / "Another" / f"{number}.jpg")
    shutil.copy(faces / "Person_4" / "Person_4_0001.jpg", faces / "Person_4" / "again.jpg")
    person_folders(folder / "bench", people=1, images=6, first=9)
    for name in ("faces", "bench"):
        line = ["--data", folder / name, "--model", model, "--output_dir", folder / f"{name}_embedded"]
        embed_set(parse_embedding([*map(str, line)]))
    line = ["--embeddings", folder / "faces_embedded", "--against", folder / "bench_embedded", "--data", faces]
    clean(parse_settings([*map(str, line), "--output_dir", str(folder / "out"), *COSINES]))
    return folder


def test_what_was_planted_is_proposed_and_drawn(work):
    found = pq.read_table(work / "out" / "proposals.parquet").to_pylist()
    of = {kind: [each for each in found if each["kind"] == kind] for kind in ("mislabelled", "merge", "overlap")}
    moved = {each["path"].rpartition("/")[2][:-4]: each for each in of["mislabelled"]}
    for name, wrong in WRONG.items():
        assert (moved[name]["identity"], moved[name]["other_identity"]) == (wrong, name[:8])
        assert moved[name]["own"] < 0.8 <= moved[name]["score"]
    assert {"Another", "Person_5"} in [{each["identity"], each["other_identity"]} for each in of["merge"]]
    assert "Person_9" in [each["identity"] for each in of["overlap"]]
    (again,) = (each for each in found if each["kind"] == "duplicate")
    assert {again[name].rpartition("/")[2] for name in ("path", "other_path")} == {"again.jpg", "Person_4_0001.jpg"}
    assert (work / "out" / "proposals.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="was made of other data than"):
        line = ["--embeddings", work / "faces_embedded", "--data", work / "bench", "--output_dir", work / "other"]
        clean(parse_settings([*map(str, line)]))


def accepted(work, path):
    rows = pq.read_table(work / "out" / "proposals.parquet").to_pylist()
    for each in rows:
        pair = {each["identity"], each["other_identity"]}
        each["accepted"] = {
            "mislabelled": any(name in each["path"] for name in WRONG),
            "merge": pair == {"Another", "Person_5"},
            "overlap": each["identity"] == "Person_9",
        }.get(each["kind"], each["kind"] == "duplicate")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_accepted_proposals_make_a_clean_set(work, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    proposals = accepted(work, tmp_path / "proposals.parquet")
    line = ["apply", work / "faces", proposals, tmp_path / "out", "--workers", "1", "--shard_images", "30"]
    main([*map(str, line)])
    faces = load_faces(str(tmp_path / "out"), "train", "image", "identity")
    of_people = {}
    for row in range(len(faces)):
        of_people.setdefault(faces.label(row), []).append(faces.encoded([row])[0])
    clean_set = person_folders(tmp_path / "truth", people=12, images=6)
    truth = {
        each.name: sorted(path.read_bytes() for path in each.iterdir())
        for each in clean_set.iterdir()
        if each.name != "Person_9"
    }
    of_people["Person_5"] = of_people.pop("Another", None) or of_people["Person_5"]
    assert {name: sorted(images) for name, images in of_people.items()} == truth
    for image in pq.read_table(tmp_path / "out", columns=["image"])["image"].to_pylist():
        assert Path(image["path"]).read_bytes() == image["bytes"]
    labels = (
        pq.read_table(tmp_path / "out", columns=["label", "identity"]).group_by(["label", "identity"]).aggregate([])
    )
    assert sorted(labels["label"].to_pylist()) == list(range(11))
    main([*map(str, line)])  # it is done
    pq.write_table(pq.read_table(proposals).slice(1), proposals)
    with pytest.raises(UserError, match="begun for another import"):
        main([*map(str, line)])


def test_numbered_people_keep_their_numbers(tmp_path, monkeypatch):
    """Or class weights of an earlier run would be taken for those of others."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = sorted(person_folders(tmp_path / "faces", people=4, images=2).rglob("*.jpg"))
    numbers = [3, 3, 7, 7, 8, 8, 20, 20]
    rows = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in images], "label": numbers}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "set" / "train-00000-of-00001.parquet")
    found = {"kind": "merge", "identity": "8", "other_identity": "20", "row": 4, "accepted": True}
    content = load_faces(str(tmp_path / "set"), "train", "image", "label").fingerprint
    pq.write_table(pa.Table.from_pylist([found | {"content": content}]), tmp_path / "proposals.parquet")
    main(["apply", str(tmp_path / "set"), str(tmp_path / "proposals.parquet"), str(tmp_path / "out"), "--workers", "1"])
    written = pq.read_table(tmp_path / "out", columns=["label", "identity"])
    assert written["label"].to_pylist() == [3, 3, 7, 7, 20, 20, 20, 20]
    assert written["identity"].to_pylist() == [str(each) for each in written["label"].to_pylist()]


def test_proposals_that_cannot_be_applied(work, tmp_path):
    table = pq.read_table(work / "out" / "proposals.parquet")

    def refused(reason, changed=None, faces=work / "faces"):
        if changed is not None:
            pq.write_table(changed, tmp_path / "proposals.parquet")
        with pytest.raises(UserError, match=reason):
            main(["apply", str(faces), str(tmp_path / "proposals.parquet"), str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()

    def with_column(name, value, kind):
        column = pa.array([value] * len(table), kind)
        return table.set_column(table.column_names.index(name), name, column)

    refused("there is no file")
    (tmp_path / "proposals.parquet").write_text("row,kind")
    refused("cannot be read as proposals")
    refused("no column kind", table.drop_columns(["kind"]))
    refused("accepted is not of bool", with_column("accepted", "yes", pa.string()))
    refused("row is not of int64", with_column("row", "second", pa.string()))
    refused("row is not of int64", with_column("row", 2.5, pa.float64()))
    refused("without a row", with_column("row", None, pa.float64()))
    refused("kind is not of string", with_column("kind", ["merge"], pa.list_(pa.string())))
    refused("identity is not of string", with_column("identity", [1], pa.list_(pa.int64())))
    refused("unknown kind", with_column("kind", "twins", pa.string()))
    refused("is not of .*it has .*'nobody'", with_column("identity", "nobody", pa.string()))
    refused("is not of .*it has .*'row': 9999", with_column("row", 9999.0, pa.float64()))
    shutil.copytree(work / "faces", tmp_path / "faces")
    one, other, aside = (
        tmp_path / "faces" / "Person_1" / f"{name}.jpg" for name in ("Person_1_0001", "Person_1_0002", "_")
    )
    for before, after in ((one, aside), (other, one), (aside, other)):
        before.rename(after)
    refused("was made of other data than", table, tmp_path / "faces")
