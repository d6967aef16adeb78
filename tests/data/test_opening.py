import hashlib
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from ffc_ds.data.decoding import decode
from ffc_ds.data.faces import Faces
from ffc_ds.data.generated import dataset as generated
from ffc_ds.data.opening import load_faces, open_set
from ffc_ds.data.reading import read_images
from ffc_ds.errors import UserError
from tests.identities import all_labels
from tests.tables import colours, png, table

COLUMNS = "image", "label"
LFW = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lfw"


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    table([4, 4, 0, 9, 0]).to_parquet(folder / "train-00000-of-00001.parquet")
    table([1, 2, 3, 4, 5]).to_parquet(folder / "eval-00000-of-00001.parquet")
    return str(folder)


def test_parquet_folder(parquet):
    faces = load_faces(parquet, "train", *COLUMNS)
    assert len(faces) == 5 and all_labels(faces) == [4, 4, 0, 9, 0]
    assert colours(faces, [3, 0, 3, 4]) == [3, 0, 3, 4]
    assert load_faces(parquet, "train", *COLUMNS).fingerprint == faces.fingerprint
    assert load_faces(parquet, "test", *COLUMNS).fingerprint != faces.fingerprint
    assert "test" in open_set(parquet, *COLUMNS).splits and "validation" not in open_set(parquet, *COLUMNS).splits


def test_fingerprint_is_the_same_in_another_process(parquet, tmp_path):
    script = """if True:
        import sys
        from ffc_ds.data.opening import load_faces
        print(load_faces(sys.argv[1], "train", "image", "label").fingerprint)
    """
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "other cache"), "RANK": "1"}
    result = subprocess.run([sys.executable, "-c", script, parquet], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == load_faces(parquet, "train", *COLUMNS).fingerprint
    assert "Generating" not in result.stderr  # no progress bar but on rank 0


def test_image_folder_reads_files(tmp_path):
    for i, identity in enumerate(["ann", "ann", "bob"]):
        (tmp_path / "faces" / identity).mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / identity / f"{i}.png").write_bytes(png(i))
    faces = load_faces(str(tmp_path / "faces"), "train", *COLUMNS)
    assert all_labels(faces) == ["ann", "ann", "bob"] and colours(faces, [2, 0]) == [2, 0]
    (tmp_path / "faces" / "bob" / "2.png").unlink()
    with pytest.raises(
        UserError, match=r"row 2 \(label bob\) of split 'train' of .*/bob/2\.png cannot be read \(No such"
    ):
        read_images(faces, np.array([0, 2]), 8)


def test_saved_to_disk(tmp_path):
    dataset = table([1, 2, 3, 4, 5]).select([4, 2, 0])
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, dev=dataset).save_to_disk(tmp_path / "both")
    for name, split in (("one", "train"), ("both", "dev")):
        faces = load_faces(str(tmp_path / name), split, *COLUMNS)
        assert all_labels(faces) == [5, 3, 1] and colours(faces, [0, 1, 2]) == [4, 2, 0]
    assert (
        "dev" in open_set(str(tmp_path / "both"), *COLUMNS).splits
        and "dev" not in open_set(str(tmp_path / "one"), *COLUMNS).splits
    )


def test_saved_split_keeps_its_name(tmp_path):
    datasets.Dataset.from_dict({"image": [png(0)], "label": [0]}, split="dev").save_to_disk(tmp_path / "one")
    assert (
        "dev" in open_set(str(tmp_path / "one"), *COLUMNS).splits
        and "train" not in open_set(str(tmp_path / "one"), *COLUMNS).splits
    )


@pytest.mark.parametrize(
    "split, image, label, message",
    [
        ("trian", "image", "label", "has no split 'trian', it has train, test; did you mean 'train'?"),
        (
            "train",
            "imag",
            "label",
            "no column for the images called 'imag', it has image, label; did you mean 'image'?",
        ),
        ("train", "image", "identity", "no column for the labels called 'identity', it has image, label"),
    ],
)
def test_names_that_do_not_exist(parquet, split, image, label, message):
    with pytest.raises(UserError) as caught:
        load_faces(parquet, split, image, label)
    assert message in str(caught.value) and parquet in str(caught.value)


def test_paths_that_are_no_dataset(tmp_path):
    (tmp_path / "file.parquet").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 this is none")
    for name, message in {
        "nowhere": "no dataset folder",
        "file.parquet": "is a file: give the folder",
        "empty": "has no folder with images",
        "broken": "train.parquet is no whole parquet file",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            load_faces(str(tmp_path / name), "train", *COLUMNS)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_table_among_somebodys_images_does_not_make_data_files_of_them(tmp_path):
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(1))
    table([1, 2]).to_parquet(tmp_path / "ann" / "notes.parquet")
    assert all_labels(load_faces(str(tmp_path), "train", *COLUMNS)) == ["ann", "bob"]


def test_a_table_beside_peoples_folders_does_not_change_who_they_are(tmp_path):
    folder = tmp_path / "faces"
    for place in ("ann/2019", "ann/2020", "bob/2019", "bob/2020"):
        (folder / place).mkdir(parents=True)
        (folder / place / "1.png").write_bytes(png(1))
    (folder / "features").mkdir()
    table([1, 2]).to_parquet(folder / "features" / "embedded.parquet")
    assert all_labels(load_faces(str(folder), "train", *COLUMNS)) == ["ann", "ann", "bob", "bob"]


def test_parts_of_splits_and_several(parquet):
    def labels(split):
        return all_labels(load_faces(parquet, split, *COLUMNS))

    assert labels("train[:50%]") == [4, 4] and labels("train[3:]") == [9, 0] and labels("test[-1:]") == [5]
    assert labels("train[:1]+test[:2]") == [4, 1, 2]
    assert colours(load_faces(parquet, "train[3:]", *COLUMNS), [1, 0]) == [4, 3]
    prints = {load_faces(parquet, split, *COLUMNS).fingerprint for split in ("train", "train[:50%]", "train[:51%]")}
    assert len(prints) == 3
    for split, message in {
        "train[:x]": "cannot be understood",
        "trian[:5]": "has no split 'trian', .*mean 'train'",
        "train[5:5]": "cannot be understood .*out of range",
    }.items():
        with pytest.raises(UserError, match=message):
            labels(split)


def test_files_that_were_replaced_under_their_old_time_stamp_are_read_anew(parquet):
    path = Path(parquet) / "train-00000-of-00001.parquet"
    times, before = path.stat(), load_faces(parquet, "train", *COLUMNS)
    table([0, 9, 0, 4, 4]).to_parquet(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load_faces(parquet, "train", *COLUMNS)
    assert all_labels(after) == [0, 9, 0, 4, 4] and after.fingerprint != before.fingerprint


def test_files_saved_to_disk_that_were_replaced_have_another_fingerprint(tmp_path):
    prints = []
    for labels in ([1, 2], [1, 1]):
        table(labels).save_to_disk(tmp_path / "saved")
        prints.append(load_faces(str(tmp_path / "saved"), "train", *COLUMNS).fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("kind", ["parquet", "json", "arrow"])
def test_people_who_are_renamed_in_the_readme_are_called_so_at_once(tmp_path, kind):
    folder = tmp_path / "faces"
    folder.mkdir()
    source = datasets.Dataset.from_dict({"image": ["x", "y"], "label": [0, 1]})
    if kind == "arrow":
        with pa.ipc.new_stream(folder / "train.arrow", source.data.schema) as writer:
            writer.write_table(source.data.table)
    else:
        getattr(source, f"to_{kind}")(folder / f"train.{kind}")
    prints = set()
    for names in ("ann", "bob"), ("ann", "eve"), ("ann", "bob"):
        labels = "".join(f"            '{number}': {name}\n" for number, name in enumerate(names))
        image = "  - name: image\n    dtype: binary\n"
        label = f"  - name: label\n    dtype:\n      class_label:\n        names:\n{labels}"
        (folder / "README.md").write_text(f"---\ndataset_info:\n  features:\n{image}{label}---\n")
        faces = load_faces(str(folder), "train", *COLUMNS)
        assert all_labels(faces) == list(names)
        prints.add(faces.fingerprint)
    assert len(prints) == 2


def test_the_fingerprint_of_people_without_class_names_stays_as_it_was():
    content = Faces(table([1, 2]), "x", *COLUMNS, "content").fingerprint
    assert content == hashlib.blake2b(b"content label", digest_size=8).hexdigest()


def test_configurations(tmp_path):
    for name, labels in (("clean", [1, 2]), ("all", [1, 2, 3])):
        (tmp_path / name).mkdir()
        table(labels).to_parquet(tmp_path / name / "train.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("clean", "all"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert all_labels(load_faces(str(tmp_path), "train", *COLUMNS, "all")) == [1, 2, 3]
    choose = r"has the configurations \['clean', 'all'\]: choose one, with --data.config in training and --data_config"
    for config in (None, "al"):
        with pytest.raises(UserError, match=choose):
            load_faces(str(tmp_path), "train", *COLUMNS, config)


def test_a_configuration_of_what_has_none_is_refused(tmp_path):
    (tmp_path / "images" / "ann").mkdir(parents=True)
    (tmp_path / "images" / "ann" / "1.png").write_bytes(png(1))
    table([1]).save_to_disk(tmp_path / "saved")
    for name in ("generated:10:32", str(tmp_path / "images"), str(tmp_path / "saved")):
        load_faces(name, "train", *COLUMNS)
        with pytest.raises(UserError, match="has no configurations to choose 'clean' from"):
            load_faces(name, "train", *COLUMNS, "clean")


def test_folds_of_the_same_files_are_different_data(tmp_path):
    for number in range(3):
        table([2 * number, 2 * number + 1]).to_parquet(tmp_path / f"{number}.parquet")
    folds = {"a": ("[0.parquet, 1.parquet]", "2.parquet"), "b": ("[1.parquet, 2.parquet]", "0.parquet")}
    files = "  - {{split: train, path: {}}}\n  - {{split: test, path: {}}}\n"
    configs = "".join(f"- config_name: {name}\n  data_files:\n{files.format(*folds[name])}" for name in folds)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    first, second = (load_faces(str(tmp_path), "train", *COLUMNS, name) for name in folds)
    assert (all_labels(first), all_labels(second)) == ([0, 1, 2, 3], [2, 3, 4, 5])
    assert first.fingerprint != second.fingerprint


def test_labels_that_the_readme_makes_texts_are_different_data(parquet):
    before = load_faces(parquet, "train", *COLUMNS)
    kinds = "  - name: image\n    dtype: image\n  - name: label\n    dtype: string\n"
    Path(parquet, "README.md").write_text(f"---\ndataset_info:\n  features:\n{kinds}---\n")
    after = load_faces(parquet, "train", *COLUMNS)
    assert all_labels(after) == ["4", "4", "0", "9", "0"] and after.fingerprint != before.fingerprint


def test_files_that_are_in_no_split_are_named(tmp_path, capsys):
    folder = tmp_path / ".hidden" / "faces"
    folder.mkdir(parents=True)
    for name in ("train_a", "extra", "more", ".other"):
        table([1]).to_parquet(folder / f"{name}.parquet")
    (folder / "train_b.parquet").symlink_to(tmp_path / "b")  # as the hub's cache has them
    table([2]).to_parquet(tmp_path / "b")
    assert len(load_faces(str(folder), "train", *COLUMNS)) == 2
    assert "left out, because in no split by name: extra.parquet and 1 more\n" in capsys.readouterr().out


def test_labels_of_no_use_are_named_though_the_first_image_is_damaged(tmp_path):
    columns = {"image": [{"bytes": b"garbage", "path": None}], "label": [0.5]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("float32"))
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"holds float32 \(row 0: 0.5\)"):
        load_faces(str(tmp_path / "saved"), "train", *COLUMNS)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("README.md", "---\na: [\n---\n", "while parsing a flow node"),
        ("state.json", "{}", "KeyError: '_data_files'"),
        ("state.json", "[]", "TypeError: "),
        ("dataset_dict.json", "[]", "TypeError: "),
        ("dataset_dict.json", '{"splits": 1}', "TypeError: "),
        ("dataset_dict.json", "{", "Expecting property name"),
    ],
)
def test_descriptions_that_are_broken(parquet, file, content, reason):
    (Path(parquet) / "dataset_info.json").write_text("{}")  # without which `datasets` looks no further
    (Path(parquet) / file).write_text(content)
    with pytest.raises(UserError, match=rf"cannot open dataset .* \(({reason}).*\): check the name and the files"):
        load_faces(parquet, "train", *COLUMNS)


def test_other_tables_than_parquet(tmp_path):
    names = ["ann", "bob"]
    (tmp_path / "arrow").mkdir()
    source = table(names, datasets.Value("string"))
    with pa.ipc.new_stream(tmp_path / "arrow" / "train.arrow", source.data.schema) as writer:
        writer.write_table(source.data.table)
    faces = load_faces(str(tmp_path / "arrow"), "train", *COLUMNS)
    assert all_labels(faces) == names and colours(faces, [1, 0]) == [1, 0]


@pytest.mark.parametrize("ending", [".parquet", "-0f3a.parquet"])
def test_files_that_are_not_all_there(tmp_path, ending):
    folder = tmp_path / "faces"
    (folder / "train").mkdir(parents=True)
    for number in range(3):
        table([number]).to_parquet(folder / "train" / f"a-{number:05d}-of-00003{ending}")
    table([7]).to_parquet(folder / "train" / "b-00000-of-00001.parquet")  # of another set, and whole
    assert all_labels(load_faces(str(folder), "train", *COLUMNS)) == [0, 1, 2, 7]
    (folder / "train" / f"a-00001-of-00003{ending}").unlink()
    with pytest.raises(UserError, match=r"/faces holds 2 files of 3 of split train, by their names: get the others"):
        load_faces(str(folder), "train", *COLUMNS)


def test_an_empty_parquet_file_is_an_empty_dataset(tmp_path):
    table([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="is empty: there is nothing to train on"):
        load_faces(str(tmp_path), "train", *COLUMNS)


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch, kind):
    (tmp_path / "faces").mkdir()
    getattr(datasets.Dataset.from_dict({"image": ["x"], "label": [1]}), f"to_{kind}")(tmp_path / f"faces/train.{kind}")
    (tmp_path / "file").write_bytes(b"")
    for cache in ("file", "file/cache"):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / cache)
        with pytest.raises(
            UserError, match=rf"/faces cannot be copied to the cache {tmp_path}/{cache} .*or set HF_DATA"
        ):
            load_faces(str(tmp_path / "faces"), "train", *COLUMNS)


def test_generated_identities():
    faces = load_faces("generated:2:16", "test", *COLUMNS)
    assert set(all_labels(faces)) == {0, 1} and decode(faces.encoded(np.array([0]))[0], 16).shape == (16, 16, 3)
    assert (
        "train" in open_set("generated:2:16", *COLUMNS).splits and "dev" not in open_set("generated", *COLUMNS).splits
    )
    with pytest.raises(UserError, match="no split 'dev', it has train, test"):
        load_faces("generated:2:16", "dev", *COLUMNS)


def test_of_generated_splits_only_those_asked_for_are_drawn(monkeypatch):
    drawn, build = [], generated.build

    def noted(identities, split, *arguments, **more):
        drawn.append(split)
        return build(identities, split, *arguments, **more)

    monkeypatch.setattr(generated, "build", noted)
    part, whole = (load_faces("generated:2:16", split, *COLUMNS) for split in ("test[:3]", "test"))
    assert drawn == ["test", "test"] and all_labels(part) == all_labels(whole)[:3]
    both = load_faces("generated:2:16", "test[1:2]+train[:1]+test[:1]", *COLUMNS)
    assert sorted(drawn[2:]) == ["test", "train"] and both.encoded([0, 2]) == whole.encoded([1, 0])


def test_unreachable_hub_is_noticed_at_once(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no folder nobody/nothing here, and the hub cannot be reached"):
        open_set("nobody/nothing", *COLUMNS)
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.skipif(not LFW.is_dir(), reason="the shared LFW folder is not here")
def test_real_faces():
    faces = load_faces(str(LFW), "train", *COLUMNS)
    assert len(faces) == len(all_labels(faces)) == 10716
    assert all(encoded[:2] == b"\xff\xd8" for encoded in faces.encoded(np.arange(0, 10716, 500)))
