# SPDX-License-Identifier: Apache-2.0
"""Archives are unpacked entirely or not at all, never outside their folder."""

import os
import shutil
import stat
import tarfile

import pytest

from common import errors
from helpers.archive_files import write_long_header, write_tar, write_zip
from scripts import archives

GOOD = [("Task/train.tsv", b"a\tb\n" * 1000), ("Task/sub/dev.tsv", b"")]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_folder_appears_with_its_files(tmp_path, write):
    path = write(
        tmp_path / "a",
        GOOD
        + [
            ("__MACOSX/Task/._train.tsv", b"x"),
            ("Task/.DS_Store", b"x"),
            ("Other/file", b"x"),
        ],
    )
    archives.extract(path, "Task", str(tmp_path / "out"))
    contents = {
        str(file.relative_to(tmp_path / "out")): file.read_bytes()
        for file in (tmp_path / "out").glob("**/*")
        if file.is_file()
    }
    assert contents == {"train.tsv": GOOD[0][1], "sub/dev.tsv": b""}
    assert sorted(os.listdir(str(tmp_path))) == ["a", "out"]


def rejection(tmp_path, path, **limits):
    """The message; no file may be left or be written elsewhere."""
    target = tmp_path / "deep" / "out"
    target.parent.mkdir()
    with pytest.raises(errors.UserError) as caught:
        archives.extract(path, "Task", str(target), **limits)
    assert sorted(os.listdir(str(tmp_path))) == ["a", "deep"]
    assert os.listdir(str(target.parent)) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "Task/../../evil",
        "/tmp/evil",
        "Task//evil",
        "Task/./evil",
        "C:/evil",
        "..\\evil",
        "Task\\..\\evil",
    ],
)
def test_path_outside_of_the_folder_is_rejection(tmp_path, write, name):
    path = write(tmp_path / "a", GOOD + [(name, b"x")])
    assert "outside of its folder" in rejection(tmp_path, path)


@pytest.mark.parametrize(
    "write, kind",
    [
        (write_zip, stat.S_IFLNK | 0o777),
        (write_zip, stat.S_IFIFO | 0o777),
        (write_tar, tarfile.SYMTYPE),
        (write_tar, tarfile.LNKTYPE),
        (write_tar, tarfile.CHRTYPE),
        (write_tar, tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_rejected(tmp_path, write, kind):
    path = write(
        tmp_path / "a",
        GOOD + [("Task/link", b"/etc/passwd")],
        {"Task/link": kind},
    )
    assert "a link or a device" in rejection(tmp_path, path)


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_size_is_limited_over_all_files(tmp_path, write):
    path = write(
        tmp_path / "a", [(f"Task/{n}", bytes(1000)) for n in range(10)]
    )
    archives.extract(path, "Task", str(tmp_path / "fits"), max_bytes=10000)
    shutil.rmtree(str(tmp_path / "fits"))
    text = rejection(tmp_path, path, max_bytes=9999)
    assert "contains more than 9999 bytes" in text


def test_size_that_a_zip_claims_is_not_believed(tmp_path):
    path = write_zip(tmp_path / "a", [("Task/bomb", bytes(5000000))])
    data = bytearray((tmp_path / "a").read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24  # the central directory's size
    data[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a").write_bytes(bytes(data))
    rejection(tmp_path, path, max_bytes=1000)


def test_no_more_is_written_than_allowed(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a", [("Task/bomb", bytes(20000000))])
    left, remove = [], shutil.rmtree

    def count(directory, **options):
        left.extend(file.stat().st_size for file in tmp_path.glob("**/bomb"))
        remove(directory, **options)

    monkeypatch.setattr(shutil, "rmtree", count)
    rejection(tmp_path, path, max_bytes=1000)
    assert left == [0]


def test_number_of_files_is_limited(tmp_path):
    path = write_zip(tmp_path / "a", [(f"Task/{n}", b"") for n in range(4)])
    assert "more than 3 files" in rejection(tmp_path, path, max_files=3)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_file_that_comes_twice_is_rejection(tmp_path):
    path = write_zip(tmp_path / "a", GOOD + GOOD[:1])
    assert "twice" in rejection(tmp_path, path)


def test_archive_without_the_folder_is_rejection(tmp_path):
    path = write_zip(tmp_path / "a", [("Else/train.tsv", b"x")])
    assert "no folder Task" in rejection(tmp_path, path)


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_damaged_archive_is_rejection(tmp_path, write):
    path = write(tmp_path / "a", [("Task/a", os.urandom(100000))])
    data = bytearray((tmp_path / "a").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a").write_bytes(bytes(data))
    assert "download it again" in rejection(tmp_path, path)


def test_file_that_is_not_an_archive_is_rejection(tmp_path):
    (tmp_path / "a").write_bytes(b"<html>")
    assert "neither" in rejection(tmp_path, str(tmp_path / "a"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_long_headers_are_rejection(tmp_path, kind):
    """One header of 1 GB is a megabyte of the archive."""
    path = write_long_header(tmp_path / "a", kind, 1 << 30)
    assert "headers of more than 1048576 bytes" in rejection(tmp_path, path)


def test_a_name_that_is_not_utf8_is_rejection(tmp_path):
    path = write_zip(tmp_path / "a", [("Task/\u00e9", b"x")])
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data.replace(b"\xc3\xa9", b"\xff\xa9", 1))
    assert "cannot be unpacked: 'utf-8'" in rejection(tmp_path, path)
