"""A file that changed is noticed whatever its time stamp says."""

import os

import pytest

from ffc_ds.data.content import content_fingerprint

BYTES = bytes(range(256)) * 40


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(BYTES)
    (tmp_path / "empty").touch()
    return [(name, tmp_path / name) for name in ("a", "b", "empty")]


def test_the_same_files_in_any_order_have_the_same_fingerprint(files):
    before = content_fingerprint(files)
    os.utime(files[0][1], (0, 0))
    assert content_fingerprint(reversed(files)) == before


@pytest.mark.parametrize(
    "content", [BYTES[:-1], BYTES + b"0", b"0" + BYTES[1:], BYTES[:-1] + b"0", BYTES[::-1]], ids=range(5)
)
def test_other_content_under_the_same_time_stamp_is_another_fingerprint(files, content):
    before, path = content_fingerprint(files), files[0][1]
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_fingerprint(files) != before


def test_other_names_and_other_places_are_another_fingerprint(files, tmp_path):
    before = content_fingerprint(files)
    assert content_fingerprint([("c", files[0][1]), *files[1:]]) != before
    assert content_fingerprint(files[1:]) != before
    (tmp_path / "a").write_bytes(BYTES[::-1])
    swapped = [("a", tmp_path / "b"), ("b", tmp_path / "a"), files[2]]
    assert content_fingerprint(swapped) != content_fingerprint(files)


def test_a_file_that_cannot_be_read_is_another_content(files):
    before = content_fingerprint(files, all_readable=False)
    assert before == content_fingerprint(files)
    files[0][1].unlink()
    files[0][1].symlink_to("/proc/self/mem")  # whose first bytes nobody can read: EIO
    with pytest.raises(OSError, match="Input/output error"):
        content_fingerprint(files)
    assert content_fingerprint(files, all_readable=False) != before
    files[0][1].unlink()
    with pytest.raises(FileNotFoundError):
        content_fingerprint(files)
    assert content_fingerprint(files, all_readable=False) != before


@pytest.mark.parametrize("place", [0, 1023, 1024, 100_000, 777_777, 999_999])
def test_any_byte_of_few_small_files_counts(tmp_path, place):
    content = bytearray(10**6)
    (tmp_path / "a").write_bytes(content)
    before = content_fingerprint([("a", tmp_path / "a")])
    content[place] = 1
    (tmp_path / "a").write_bytes(content)
    assert content_fingerprint([("a", tmp_path / "a")]) != before
