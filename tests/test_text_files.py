# SPDX-License-Identifier: Apache-2.0
"""Finding files of text and reading their bytes."""

import bz2
import gzip
import io
import lzma
import struct
import zipfile

import numpy as np
import pytest

from common import errors
from pretraining_data import text_files


def read(path):
    (file,) = text_files.expand_inputs(str(path))
    return b"".join(block for _, block in text_files.read_blocks(file))


def test_inputs_are_files_globs_and_directories_in_order(tmp_path):
    for name in (
        "b.txt",
        "a.txt",
        ".hidden",
        "sub/c",
        "old.tfrecord",
        "manifest.json",
        "progress.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text\n")

    def names(text):
        return [
            f.path[len(str(tmp_path)) + 1 :]
            for f in text_files.expand_inputs(text)
        ]

    assert names(str(tmp_path)) == ["a.txt", "b.txt", "sub/c"]
    assert names(f"{tmp_path}/*.txt, {tmp_path}/a.txt") == [
        "a.txt",
        "b.txt",
        "a.txt",
    ]


@pytest.mark.parametrize("name", ["gone.txt", "gone*", "folder"])
def test_an_input_that_is_not_there_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.UserError, match="no file .*" + name[:4]):
        text_files.expand_inputs(str(tmp_path / name))


def test_empty_files_and_pipes_are_errors(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(errors.UserError, match="contains no text"):
        text_files.expand_inputs(str(tmp_path / "empty.txt"))
    with pytest.raises(errors.UserError, match="not a regular file"):
        text_files.expand_inputs("/dev/null")


def zipped(data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "compress, fix",
    [
        (bz2.compress, "bunzip2, or compress it as .gz"),
        (lzma.compress, "unxz, or compress it as .gz"),
        (zipped, "unzip, or compress it as .gz"),
        (gzip.compress, "gunzip, or name it .gz"),
        # The magic number of a Zstandard frame: RFC 8878, section 3.1.1.
        (
            lambda data: struct.pack("<I", 0xFD2FB528) + data,
            "unzstd, or compress it as .gz",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "A.TXT.BZ2", "a.jsonl"])
def test_compressed_files_name_the_tool(tmp_path, compress, fix, name):
    (tmp_path / name).write_bytes(compress(b"text"))
    with pytest.raises(errors.UserError, match=f"decompress it with {fix}$"):
        text_files.expand_inputs(str(tmp_path / name))


@pytest.mark.parametrize(
    "data, lines",
    [(b"a\rb\r", 1), (b"a\r\nb", 0), (b"a\n\rb", 0), (b"a", 0), (b"a\r", 0)],
)
def test_lines_that_end_in_a_carriage_return_alone_are_warned_of(
    tmp_path, caplog, data, lines
):
    (tmp_path / "a.txt").write_bytes(data)
    text_files.expand_inputs(str(tmp_path))
    assert caplog.text.count("a carriage return alone") == lines


def test_gzip_files_may_have_several_members_and_padding(tmp_path):
    parts = [b"a" * 200000 + b"\n", b"", b"b\n"]
    path = tmp_path / "a.gz"
    path.write_bytes(b"".join(map(gzip.compress, parts)) + bytes(100000))
    data = read(path)
    assert data == b"".join(parts)


def test_damaged_gzip_files_are_errors(tmp_path):
    state = np.random.RandomState(0)
    whole = gzip.compress(state.bytes(100000))
    flipped = bytearray(whole)
    flipped[50000] ^= 0xFF
    for data, message in [
        (whole[:-20], "truncated gzip"),
        (whole[:5], "truncated gzip"),
        (bytes(flipped), "not an intact gzip"),
        (b"plain text\n", "not an intact gzip"),
        (whole + b"rest", "not an intact gzip"),
    ]:
        (tmp_path / "a.gz").write_bytes(data)
        with pytest.raises(errors.UserError, match=r"a\.gz' is .*" + message):
            read(tmp_path / "a.gz")
