import gzip
import io
import tarfile
from types import SimpleNamespace

import huggingface_hub
import pytest
import webdataset

from ffc_ds.data.importers.webdataset import plan_webdataset
from ffc_ds.errors import UserError
from tests.data.importers.formats import collect, imported, pictures


def write_tar(path, samples):
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, contents in samples:
            writer.write({"__key__": key, **contents})


def samples(count):
    return [(f"part/{i:05d}", {"jpg": image, "cls": str(i // 3).encode()}) for i, image in enumerate(pictures(count))]


def raw_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def tars(tmp_path):
    for number in range(3):
        write_tar(tmp_path / "tars" / f"train-{number}.tar", samples(12)[4 * number : 4 * number + 4])
    return tmp_path / "tars"


EXPECTED = [(image, i // 3, str(i // 3)) for i, image in enumerate(pictures(12))]


def test_tars_arrive_identical(tars, tmp_path):
    assert imported(plan_webdataset(str(tars)), tmp_path / "out") == EXPECTED
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_a_pattern_and_one_tar(tars):
    for pattern, count in (("train-[01].tar", 8), ("train-2.tar", 4), ("../*/*.tar", 12)):
        records, broken = collect(plan_webdataset(f"{tars}/{pattern}"))
        assert len(records) == count and not broken
    assert records[5].key == "train-1.tar/part/00005"


def test_names_with_dots_other_files_and_long_names(tmp_path):
    image, other = pictures(2)
    long = "d" * 90 + "/" + "n" * 120
    files = [("a.b/x.seg.png", b"no"), ("a.b/x.JPEG", image), ("a.b/x.cls", b" 4\n"), ("a.b/x.json", b"{}")]
    files += [(f"{long}.png", other), (f"{long}.cls", b"5")]
    records, broken = collect(plan_webdataset(str(raw_tar(tmp_path / "x.tar", files))))
    assert [(r.key, r.image, r.label) for r in records] == [("x.tar/a.b/x", image, 4), (f"x.tar/{long}", other, 5)]
    assert not broken
    (tmp_path / "gz.tar").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    assert [r.image for r in collect(plan_webdataset(str(tmp_path / "gz.tar")))[0]] == [image, other]


def test_every_broken_sample_is_named(tmp_path):
    image = pictures(1)[0]
    contents = [{"jpg": image}, {"cls": b"1"}, {"jpg": image, "cls": b"one"}, {"jpg": image, "cls": b"-1"}]
    write_tar(
        tmp_path / "t" / "x.tar", [(f"s{i}", each) for i, each in enumerate([*contents, {"jpg": image, "cls": b"1"}])]
    )
    records, broken = collect(plan_webdataset(str(tmp_path / "t")))
    assert [r.key for r in records] == ["x.tar/s4"] and [key for key, _ in broken] == [f"x.tar/s{i}" for i in range(4)]
    for (_, reason), expected in zip(
        broken, ["there is no .cls", "no .jpg/jpeg/png", "b'one', not an integer", "count from 0"], strict=True
    ):
        assert expected in reason


def test_a_damaged_tar_says_what_is_lost(tars):
    whole = (tars / "train-0.tar").read_bytes()
    path = tars / "train-9.tar"
    second = whole.index(b"part/00001.")
    for damaged, kept, halved in (
        (whole[: second + 100], 1, []),  # within a header, which tarfile takes for the end
        (whole[:second], 1, []),  # between two members
        (whole[: second + 1200], 1, [1]),  # within an image, after its label
        (whole[:second] + b"junk" * 200 + whole[second:], 1, []),
        (b"junk" * 1000, 0, []),
        (b"", 0, []),
        (gzip.compress(whole)[:-200], 3, [3]),
    ):
        path.write_bytes(damaged)
        records, broken = collect(plan_webdataset(str(path)))
        assert [r.image for r in records] == [r[0] for r in EXPECTED[:kept]]
        assert [key for key, _ in broken[:-1]] == [f"train-9.tar/part/{i:05d}" for i in halved]
        assert broken[-1].key.startswith("train-9.tar after") and "its rest is lost" in broken[-1].reason


def test_what_holds_no_samples_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none.tar", tmp_path / "*.tar"):
        with pytest.raises(UserError, match="there is no tar at"):
            plan_webdataset(str(source))
    plan = plan_webdataset(str(raw_tar(tmp_path / "x.tar", [("a.jpg", pictures(1)[0]), ("b.jpg", pictures(1)[0])])))
    with pytest.raises(UserError, match=r"x\.tar holds no \.cls file"):
        collect(plan)


@pytest.fixture
def hub(tars, monkeypatch):
    """A hub with the dataset owner/faces; downloads are copies, and `downloads` lists where they go."""
    files = [
        SimpleNamespace(rfilename=name) for name in ("b/train-1.tar", "README.md", "b/train-0.tar", "b/train-2.tar")
    ]
    downloads = []

    def dataset_info(self, repo):
        if repo != "owner/faces":
            raise huggingface_hub.errors.OfflineModeIsEnabled("no such dataset\ndetails")
        return SimpleNamespace(sha="abc", siblings=files)

    def download(repo, filename, repo_type, revision, local_dir):
        assert (repo, repo_type, revision) == ("owner/faces", "dataset", "abc")
        path = f"{local_dir}/{filename.replace('/', '-')}"
        with open(path, "wb") as file:
            file.write((tars / filename.removeprefix("b/")).read_bytes())
        downloads.append(path)
        return path

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return downloads


def test_a_hub_dataset_is_downloaded_tar_by_tar(hub, tars):
    plan = plan_webdataset("owner/faces")
    assert plan.about == {"hub": "owner/faces", "revision": "abc", "tars": 3, "pattern": "*"}
    records, broken = collect(plan)
    assert [(r.image, r.label, r.identity) for r in records] == EXPECTED and not broken
    assert records[0].key == "b/train-0.tar/part/00000"
    assert len(hub) == 3 and not any(map(tarfile.os.path.exists, hub))
    (tars / "train-2.tar").unlink()
    with pytest.raises(UserError, match="b/train-2.tar of owner/faces cannot be downloaded .* goes on later"):
        collect(plan)


def test_some_tars_of_a_hub_dataset(hub):
    plan = plan_webdataset("owner/faces/b/train-[01].tar")
    assert plan.about["tars"] == 2
    with pytest.raises(UserError, match=r"none of the 3 tars of dataset owner/faces on the hub is called val-\*"):
        plan_webdataset("owner/faces/val-*")


def test_compressed_tars(tars, tmp_path):
    (tmp_path / "gz").mkdir()
    for tar in tars.iterdir():
        (tmp_path / "gz" / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
    records, broken = collect(plan_webdataset(str(tmp_path / "gz")))
    assert [(r.image, r.label, r.identity) for r in records] == EXPECTED and not broken


def test_a_hub_without_such_a_dataset(hub, monkeypatch):
    with pytest.raises(UserError, match=r"no folder owner/other here, and no dataset .*\(no such dataset\)"):
        plan_webdataset("owner/other")
    empty = SimpleNamespace(sha="abc", siblings=[])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo: empty)
    with pytest.raises(UserError, match="holds no tar"):
        plan_webdataset("owner/faces")
