import gzip
import io
import os
import tarfile
import tracemalloc
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


def read(path, **settings):
    """(key, image, label) of each record, and the keys of broken ones with their reasons."""
    records, broken = collect(plan_webdataset(str(path), **settings))
    return [(r.key, r.image, r.label) for r in records], dict(broken)


def sample_files(count, ending="jpg"):
    return [file for i in range(count) for file in ((f"{i}.{ending}", pictures(count)[i]), (f"{i}.cls", b"%d" % i))]


WHOLE = [(f"x.tar/{i}", pictures(8)[i], i) for i in range(8)]
NOISE = [
    lambda name: (f"._{name}", b"\0\5\x16\7companion of macOS"),
    lambda name: (f"__MACOSX/._{name}", b"\0\5\x16\7"),
    lambda name: (f"PaxHeaders.42/{name}", b"30 mtime=1700000000.123456789"),
    lambda name: (f"./PaxHeader/{name}", b"30 mtime=1700000000.123456789"),
    lambda name: (f".cache/{name}", b""),
    lambda name: (f"{name.partition('.')[0]}.txt", b"a caption"),
]


@pytest.mark.parametrize("kind", range(len(NOISE)))
def test_what_lies_between_a_picture_and_its_label_costs_nothing(tmp_path, kind):
    files = [each for file in sample_files(8) for each in (NOISE[kind](file[0]), file, NOISE[kind](file[0]))]
    assert read(raw_tar(tmp_path / "x.tar", files)) == (WHOLE, {})


def test_directories_links_and_headers_between_them(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of all"}) as tar:
        for number, (name, content) in enumerate(sample_files(8)):
            folder = tarfile.TarInfo(f"{number}.jpg.d")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), {"mtime": "1700000000.5"}
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("8.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "./3.jpg"
        tar.addfile(link)
        label = tarfile.TarInfo("8.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"3"))
    found, broken = read(path)
    assert sorted(found) == [*WHOLE, ("x.tar/8", pictures(8)[3], 3)] and not broken


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_files_of_a_sample_need_not_be_neighbours(tmp_path, compress):
    files = sample_files(8)
    for order in (files[::2] + files[1::2], files[1::2] + files[::2], files[1::2] + files[::2][::-1]):
        raw_tar(tmp_path / "x.tar", order).write_bytes(compress((tmp_path / "x.tar").read_bytes()))
        found, broken = read(tmp_path / "x.tar")
        assert sorted(found) == WHOLE and not broken


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "jfif", "png", "WebP", "bmp", "gif", "tif", "TIFF"])
def test_endings_of_pictures(tmp_path, ending):
    assert read(raw_tar(tmp_path / "x.tar", sample_files(8, ending))) == (WHOLE, {})


def test_names_with_dots(tmp_path):
    a, b, c, d, e, f, *more = pictures(12)
    files = [
        *(
            ("2020.01.02/a.b.jpg", a),
            ("2020.01.02/a.b.cls", b"1"),
            ("2020.01.02/a.c.jpg", b),
            ("2020.01.02/a.c.cls", b"2"),
        ),
        *(
            ("x.mask.png", more[0]),
            ("x.rgb.png", more[1]),
            ("x.jpg", c),
            ("x.cls", b"3"),
        ),  # those beside it are no photographs
        *(("y.rgb.jpg", d), ("y.cls", b"4")),
        *(("v1.0/z.jpg", e), ("v1.0/z.cls", b"5"), ("v1.0/z.png", more[2])),
        *(("w.left.jpg", f), ("w.right.jpg", f), ("w.cls", b"6")),
        *(("q.1.jpg", f), ("q.2.jpg", f), ("q.2.cls", b"7")),
    ]
    found, broken = read(raw_tar(tmp_path / "x.tar", files))
    assert found == [
        *(("x.tar/2020.01.02/a.b", a, 1), ("x.tar/2020.01.02/a.c", b, 2), ("x.tar/x", c, 3), ("x.tar/y", d, 4)),
        *(("x.tar/v1.0/z", e, 5), ("x.tar/q.2", f, 7)),
    ]
    assert broken == {
        "x.tar/w": "there are several pictures of it: w.left, w.right",
        "x.tar/q.1": "there is no .cls of it",
    }


def test_labels_as_people_write_them(tmp_path):
    image = pictures(1)[0]
    forms = [b"7", b" 7\n", b"7\r\n", b"\xef\xbb\xbf7\r\n", b"007"]
    files = [each for i, form in enumerate(forms) for each in ((f"{i}.jpg", image), (f"{i}.CLS", form))]
    found, broken = read(raw_tar(tmp_path / "x.tar", files))
    assert [label for *_, label in found] == [7] * 5 and not broken


def test_labels_in_json_are_told_and_read(tmp_path):
    image = pictures(1)[0]
    texts = [
        b'{"id": "a", "person": 7}',
        b'\xef\xbb\xbf{"person": "8"}',
        b'{"id": 1}',
        b'{"person": true}',
        b"[" * 10**5,
    ]
    files = [each for i, text in enumerate(texts) for each in ((f"{i}.jpg", image), (f"{i}.json", text))]
    path = raw_tar(tmp_path / "x.tar", files)
    told = (
        r"x\.tar holds no \.cls file, .* but \.jpg, \.json; the entries of a \.json are id, person: --label .* json:KEY"
    )
    with pytest.raises(UserError, match=told):
        read(path)
    found, broken = read(path, label="json:person")
    assert [label for *_, label in found] == [7, 8] and list(broken) == ["x.tar/2", "x.tar/3", "x.tar/4"]
    assert broken["x.tar/2"] == "its .json has no 'person'" and "'True', not an integer" in broken["x.tar/3"]
    assert plan_webdataset(str(path)).about != plan_webdataset(str(path), label="json:person").about
    files = [(name.replace(".json", ".index"), content) for name, content in sample_files(8)]
    raw_tar(path, [(name.replace(".cls", ".index"), content) for name, content in files])
    assert read(path, label="index") == (WHOLE, {})


def sparse_tar(path, members):
    """A tar of (name, content, kind); zeros in place of a content that is a number, which take no room on the disk."""
    with path.open("wb") as file:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, content if isinstance(content, int) else len(content)
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            if isinstance(content, int):
                file.seek(max(content, 0), os.SEEK_CUR)
            else:
                file.write(content + bytes(-len(content) % 512))
        file.write(bytes(10240))
    return path


@pytest.mark.parametrize(
    "member, broken",
    [
        (("2.jpg", 1 << 32), {"x.tar/2": "it has 4,294,967,296 bytes, and images are read up to 536,870,912"}),
        (
            ("3.cls", 1 << 32),
            {"x.tar/2": "there is no .jpg", "x.tar/3": "its .cls has 4,294,967,296 bytes, which is no"},
        ),
        (("3.mp4", 1 << 32), {"x.tar/2": "there is no .jpg"}),
        (("2.jpg", 1 << 32, tarfile.GNUTYPE_LONGNAME), {"x.tar after 2": "a name of 4,294,967,296 bytes"}),
        (("2.jpg", -512), {"x.tar after 2": "a file of -512 bytes"}),
    ],
)
def test_a_member_of_4_gib_is_named_and_not_read(tmp_path, member, broken):
    regular = [(*file, tarfile.REGTYPE) for file in sample_files(2)]
    image = ("3.jpg", pictures(1)[0], tarfile.REGTYPE)
    members = [*regular[:2], ("2.cls", b"2", tarfile.REGTYPE), (*member, tarfile.REGTYPE)[:3], *regular[2:]]
    path = sparse_tar(tmp_path / "x.tar", [*members, image] if member[0] == "3.cls" else members)
    tracemalloc.start()
    found, told = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
    whole = not any("after" in key for key in broken)
    assert [key for key, *_ in found] == ["x.tar/0", "x.tar/1"][: 1 + whole]
    told = {key: reason for key, reason in told.items() if key in broken or key != "x.tar/2"}
    assert told.keys() == broken.keys() and all(broken[key] in told[key] for key in broken)


def test_tars_put_together_by_cat_are_told(tmp_path):
    raw_tar(tmp_path / "x.tar", sample_files(8))
    path = tmp_path / "two.tar"
    path.write_bytes((tmp_path / "x.tar").read_bytes() * 2)
    found, broken = read(path)
    assert [label for *_, label in found] == list(range(8))
    assert list(broken) == ["two.tar after 7"] and "more follows on the end of the archive" in broken["two.tar after 7"]


def test_a_name_that_is_there_twice_is_told(tmp_path):
    files = [*sample_files(8), ("3.JPG", pictures(9)[8])]
    found, broken = read(raw_tar(tmp_path / "x.tar", files))
    assert sorted(found) == [*WHOLE[:3], ("x.tar/3", pictures(9)[8], 3), *WHOLE[4:]]
    assert broken == {"x.tar/3": "its .jpg is there twice: the later one is taken"}


def test_companions_of_tars_are_no_tars(tars):
    (tars / "._train-0.tar").write_bytes(b"\0\5\x16\7")
    assert len(plan_webdataset(str(tars)).jobs) == 3


def test_a_changed_tar_is_another_plan(tars):
    before = plan_webdataset(str(tars)).about
    path = tars / "train-1.tar"
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content)
    assert plan_webdataset(str(tars)).about == before
    place = content.index(b"part/00006.cls") + 512
    path.write_bytes(content[:place] + b"9" + content[place + 1 :])  # another label
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = plan_webdataset(str(tars)).about
    assert {key for key in before if before[key] != after[key]} == {"content"}


def test_every_broken_sample_is_named(tmp_path):
    image = pictures(1)[0]
    contents = [{"jpg": image}, {"cls": b"1"}, {"jpg": image, "cls": b"one"}, {"jpg": image, "cls": b"-1"}]
    contents.append({"jpg": image, "cls": b"12_3"})  # a number for Python alone
    write_tar(
        tmp_path / "t" / "x.tar", [(f"s{i}", each) for i, each in enumerate([*contents, {"jpg": image, "cls": b"1"}])]
    )
    records, broken = collect(plan_webdataset(str(tmp_path / "t")))
    assert [r.key for r in records] == ["x.tar/s5"] and [key for key, _ in broken] == [f"x.tar/s{i}" for i in range(5)]
    reasons = ["there is no .cls", "no .jpg/jpeg/jfif/png", "b'one', not an integer", "count from 0"]
    for (_, reason), expected in zip(broken, [*reasons, "b'12_3', not an integer"], strict=True):
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


def test_what_is_no_tar_is_called_what_it_is(tmp_path):
    for content, told in (
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (b"<html>404</html>", "it is a web page"),
        (b"", "it is empty"),
        (b"PK\3\4" + bytes(600), "it is a zip archive"),
        (pictures(1)[0], "it is a JPEG image"),
    ):
        (tmp_path / "x.tar").write_bytes(content)
        records, ((key, reason),) = collect(plan_webdataset(str(tmp_path)))
        assert not records and key == "x.tar after its start" and told in reason


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
    assert plan.about == {"hub": "owner/faces", "revision": "abc", "tars": 3, "pattern": "*", "label": "cls"}
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
