import os
import struct
import sys

import lmdb
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ffc_ds.data.importers import plan
from ffc_ds.data.importers.lmdb import image_of, plan_lmdb
from ffc_ds.errors import UserError
from tests.data.importers.formats import collect, imported, pictures

Field = descriptor_pb2.FieldDescriptorProto


def datum_class():
    """Caffe's message, compiled by the real protobuf."""
    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="caffe")
    datum = file.message_type.add(name="Datum")
    kinds = {"channels": 1, "height": 2, "width": 3, "data": 4, "label": 5, "float_data": 6, "encoded": 7}
    for name, number in kinds.items():
        kind = {"data": Field.TYPE_BYTES, "float_data": Field.TYPE_FLOAT, "encoded": Field.TYPE_BOOL}
        repeated = Field.LABEL_REPEATED if name == "float_data" else Field.LABEL_OPTIONAL
        datum.field.add(name=name, number=number, type=kind.get(name, Field.TYPE_INT32), label=repeated)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


DATUM = datum_class()


def datum_of_ffc(image: bytes) -> bytes:
    """As FFC's tools/make_lmdb.py writes it."""
    file = descriptor_pb2.FileDescriptorProto(name="ffc.proto", package="ffc")
    field = {"name": "data", "number": 1, "type": Field.TYPE_BYTES, "label": Field.LABEL_OPTIONAL}
    file.message_type.add(name="Datum").field.add(**field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("ffc.Datum"))
    return message(data=image).SerializeToString()


def datum(image: bytes, **more) -> bytes:
    return DATUM(
        **{"channels": 3, "height": 112, "width": 112, "data": image, "label": 7, "encoded": True} | more
    ).SerializeToString()


def write_lmdb(folder, values: dict[str, bytes], subdir=True):
    with lmdb.open(str(folder), map_size=2**24, subdir=subdir) as database, database.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return folder


def write_keys(path, lines: list[str]):
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("subdir", [True, False])
def test_datums_and_bare_images_arrive_identical(tmp_path, subdir):
    images = pictures(12)
    forms = (datum, datum_of_ffc, bytes)
    values = [forms[i % 3](image) for i, image in enumerate(images)]
    names = [f"m.0{i % 4}/{i} ü.jpg" for i in range(12)]
    source = write_lmdb(tmp_path / "train", dict(zip(names, values, strict=True)), subdir)
    separators = [" ", "\t", "  "]
    keys = write_keys(tmp_path / "keys", [f"{name}{separators[i % 3]}{i // 3}" for i, name in enumerate(names)])
    expected = [(image, i // 3, str(i // 3)) for i, image in enumerate(images)]
    assert imported(plan_lmdb(str(source), keys, shard_images=5), tmp_path / "out") == expected


def test_every_form_of_a_datum():
    image = pictures(1)[0]
    for more in ({"label": -1}, {"float_data": [0.5, 2.0]}, {"encoded": False}, {"height": 2**31 - 1}):
        assert image_of(datum(image, **more)) == image
    unknown = b"\x89\x01" + bytes(8) + b"\x95\x01" + struct.pack("<f", 1)  # 8 bytes of a field 17, 4 of a field 18
    assert image_of(unknown + datum(image)) == image
    assert image_of(DATUM(data=b"").SerializeToString()) == b""


def test_what_is_no_datum_is_taken_as_it_is():
    whole = datum(pictures(1)[0])
    others = [*pictures(3), b"", b"BM" + bytes(60), DATUM(label=3).SerializeToString()]
    others += [b"\x80" * 5000, b"\x20\x05", b"\x22\xff\xff\xff\xff\x7f", b"\x04", b"\x00\x01"]
    for value in [*others, *(whole[:length] for length in range(6, len(whole) - 4))]:
        assert image_of(value) == value


def test_every_kind_of_damage_is_named_with_its_key(tmp_path):
    source = write_lmdb(tmp_path / "train", {"a": datum(pictures(1)[0]), "b b": pictures(1)[0]})
    lines = ["a 0", "none 1", "a x", "a -2", "lonely", "", "b b 3", "a 0.5", f"{'k' * 600} 1", "a 99999999999999999999"]
    records, broken = collect(plan_lmdb(str(source), write_keys(tmp_path / "keys", lines)))
    assert [(r.key, r.label) for r in records] == [("a", 0), ("b b", 3)]
    assert [key for key, _ in broken] == ["none", "a", "a", "lonely", "a", "k" * 600, "a"]
    reasons = [
        "no such key",
        "b'x', not an integer",
        "count from 0",
        "b'', not an integer",
        "b'0.5'",
        "no such key",
    ]
    for (_, reason), expected in zip(broken, [*reasons, "count from 0"], strict=True):
        assert expected in reason


def test_a_key_file_from_windows_does_no_harm(tmp_path):
    images = pictures(6)
    source = write_lmdb(tmp_path / "train", {f"a b/{i}.jpg": datum(image) for i, image in enumerate(images)})
    keys = tmp_path / "keys.txt"
    keys.write_bytes(b"\xef\xbb\xbf" + b"".join(b"a b/%d.jpg %d\r\n" % (i, i // 3) for i in range(6)))
    for shard_images in (1, 4, 10):
        records, broken = collect(plan_lmdb(str(source), str(keys), shard_images))
        assert [(r.key, r.image, r.label) for r in records] == [(f"a b/{i}.jpg", images[i], i // 3) for i in range(6)]
        assert not broken
    keys.write_text("a b/0.jpg 0\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"keys\.txt is a text in UTF-16: save it as UTF-8"):
        plan_lmdb(str(source), str(keys))


def test_a_value_too_large_for_an_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "LARGEST", 10_000)
    source = write_lmdb(tmp_path / "train", {"small": datum(pictures(1)[0]), "large": bytes(10_001)})
    records, broken = collect(plan_lmdb(str(source), write_keys(tmp_path / "keys", ["large 0", "small 1"])))
    assert [r.key for r in records] == ["small"]
    assert broken == [("large", "it has 10,001 bytes, and images are read up to 10,000")]


def test_a_changed_source_is_another_plan(tmp_path):
    values = {f"{i}": image for i, image in enumerate(pictures(12))}
    source, keys = write_lmdb(tmp_path / "train", values), write_keys(tmp_path / "keys", [f"{i} {i}" for i in values])
    before = plan_lmdb(str(source), keys).about
    assert plan_lmdb(str(source), keys).about == before
    size, times = (source / "data.mdb").stat().st_size, (source / "data.mdb").stat()
    write_lmdb(source, {"3": values["4"]})
    os.utime(source / "data.mdb", ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = plan_lmdb(str(source), keys).about
    assert (source / "data.mdb").stat().st_size >= size and {key for key in before if before[key] != changed[key]} == {
        "content"
    }
    write_keys(tmp_path / "keys", [f"{i} {11 - int(i)}" for i in values])
    assert plan_lmdb(str(source), keys).about["content"] not in (before["content"], changed["content"])


def test_a_damaged_page_costs_the_keys_on_it(tmp_path):
    names = [f"{i:04d}" for i in range(500)]
    images = [pictures(3)[i % 3] for i in range(500)]
    source = write_lmdb(tmp_path / "train", dict(zip(names, images, strict=True)))
    content = bytearray((source / "data.mdb").read_bytes())
    content[40 * 4096 + 10 : 40 * 4096 + 12] = b"\0\0"  # says what kind of page it is
    (source / "data.mdb").write_bytes(content)
    keys = write_keys(tmp_path / "keys", [f"{name} 1" for name in names])
    records, broken = collect(plan_lmdb(str(source), keys))
    assert 1 <= len(broken) <= 10 and all("MDB_CORRUPTED" in reason for _, reason in broken)
    assert [(r.key, r.image) for r in records] == [
        pair for pair in zip(names, images, strict=True) if pair[0] not in dict(broken)
    ]


def test_what_is_no_lmdb_is_refused(tmp_path, monkeypatch):
    source = write_lmdb(tmp_path / "train", {"a": pictures(1)[0]})
    keys = write_keys(tmp_path / "keys", ["a 0"])

    def refused(reason, path=source, keys=keys):
        with pytest.raises(UserError, match=reason):
            plan_lmdb(str(path), keys)

    refused("there is no LMDB at", tmp_path)
    refused("there is no key file", keys=str(tmp_path / "none"))
    refused('does not start with a line "key label"', keys=write_keys(tmp_path / "empty", []))
    refused('does not start with a line "key label"', keys=write_keys(tmp_path / "list", ["a", "b"]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.mdb").write_bytes(pictures(1)[0] * 20)
    refused("cannot be opened as an LMDB", tmp_path / "other")
    content = (source / "data.mdb").read_bytes()
    (source / "data.mdb").write_bytes(content[:-4096])
    refused(r"data\.mdb is cut short")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    refused("pip install lmdb")
