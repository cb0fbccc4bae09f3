# SPDX-License-Identifier: Apache-2.0
"""Every reader of JSON has bounds for size, depth and digits."""

import bz2
import concurrent.futures
import contextlib
import gzip
import json
import os
import pathlib
import stat

import pytest

import configuration
import tokenization
from common import errors, files
from pretraining_data import manifest, shard_output, text_files
from question_answering import squad_scores
from tasks import table_files
from training import rollback


def test_valid_values_are_read():
    value = {
        "a": [1, -2.5, None, True, "é\U0001f600", {"b": {}}],
        "largest": 2**64 - 1,
        "smallest": -(2**63),
    }
    assert files.loads(json.dumps(value)) == value
    assert files.loads("1e999") == float("inf")
    deepest = "[" * (files.MAX_DEPTH - 1) + "7" + "]" * (files.MAX_DEPTH - 1)
    assert files.loads(deepest)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 32 + "7" + "]" * 32, "nested too deeply"),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested too deeply"),
        ("[" * 100000, "nested too deeply"),
        ('{"a":' * 100000, "nested too deeply"),
        ("1" * 21, "an integer of 21 digits"),
        ("[-" + "9" * 10**6 + "]", "an integer of 1000001 digits"),
        ("", "Expecting value"),
        ("[1,]", "Expecting value"),
    ],
)
def test_hostile_text_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        files.loads(text)


def _vocabulary(path):
    tokenization.RobertaTokenizer(str(path), str(path))


# What reads JSON -> the file's name and the reader.
READERS = {
    "config": ("config.json", configuration.RobertaConfig.from_json_file),
    "weights": ("a.json", files.read_json),
    "vocabulary": ("vocab.json", _vocabulary),
    "SQuAD": ("a.json", lambda path: squad_scores.read_json(path, "it")),
    "manifest": (
        "manifest.json",
        lambda path: manifest.load_manifest(str(path.parent)),
    ),
    "rollbacks": (
        "rollbacks.json",
        lambda path: rollback.resume(str(path.parent), 0),
    ),
    "JSON lines": (
        "a.jsonl",
        lambda path: text_files.json_text(
            str(path), 1, path.read_text(), "text"
        ),
    ),
}


@pytest.mark.parametrize("compress", [bz2.compress, gzip.compress])
def test_compressed_json_names_the_tool(tmp_path, compress):
    (tmp_path / "a.json").write_bytes(compress(b'{"data": []}'))
    with pytest.raises(
        errors.UserError,
        match="a.json: compressed; decompress it with (bunzip2|gunzip)$",
    ):
        files.read_json(str(tmp_path / "a.json"))


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize(
    "text",
    ["[" * 100000, '{"text":' * 100000, f'{{"rollbacks": {"9" * 10**6}}}'],
    ids=["lists", "objects", "digits"],
)
def test_every_reader_rejects_depth_and_digits(tmp_path, name, text):
    file, read = READERS[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(errors.UserError) as caught:
        read(tmp_path / file)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", ["[" * 100000, "9" * 10**6])
def test_damaged_progress_restarts_a_build(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    output = shard_output.ShardedOutput(
        str(tmp_path), 2, {}, {"invalid_text": "error"}, {}
    )
    output.begin(overwrite=True)
    assert output.finished == []


def test_every_reader_is_bounded_in_size(tmp_path):
    path = tmp_path / "a.json"
    with open(str(path), "wb") as stream:
        stream.truncate(files.MAX_JSON_BYTES + 1)
    for name in ("config", "weights", "vocabulary"):
        with pytest.raises(errors.UserError, match="limit|more than"):
            READERS[name][1](path)


def test_half_a_surrogate_pair_is_written_escaped(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(str(path), {"\ud800": "\u00e9"})
    assert path.read_bytes() == b'{\n  "\\ud800": "\\u00e9"\n}\n'


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(str(path))
    reader = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)
    files.write_bytes(str(path), b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert path.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def _write_together(path, data):
    with files.NewFiles([path], overwrite=True) as output:
        output.write(path, data)


@pytest.mark.parametrize("write", [files.write_bytes, _write_together])
def test_a_pipe_is_written_to_and_stays(write, tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write(path, b"an answer")
    assert os.read(reader, 100) == b"an answer"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    assert os.listdir(str(tmp_path)) == ["pipe"]


def test_a_full_device_is_an_error_that_names_it():
    assert files._is_device("/dev/full") and files._is_device("/dev/stdout")
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_bytes("/dev/full", b"an answer")
    assert caught.value.filename == "/dev/full"


def _blocks(path):
    return list(text_files.read_blocks(text_files.TextFile(path, 1)))


def _lines(path):
    with table_files.open_text(path) as stream:
        return list(stream)


@pytest.mark.parametrize(
    "read",
    [
        files.read_bytes,
        files.sha256,
        lambda path: files.read_exactly(path, 0, 1),
        lambda path: list(files.read_json_lines(path)),
        _blocks,
        _lines,
        manifest.summarize_file,
    ],
)
def test_an_error_while_reading_names_the_file(read):
    path = "/proc/self/mem"  # its first page is an input/output error
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(path)
    assert caught.value.filename == path


def test_a_file_beside_another_is_found(tmp_path):
    other = tmp_path / "vocab.json"
    other.write_text("{}")
    assert files.beside(str(tmp_path / "a.ckpt"), "vocab.json") == str(other)
    assert files.beside(str(tmp_path / "a.ckpt"), "merges.txt") == ""
    assert files.beside(str(tmp_path / "none" / "a"), "vocab.json") == ""


def test_what_was_replaced_comes_back_after_an_error(tmp_path):
    paths = {}
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text(name)
        paths[str(tmp_path / ("new_" + name))] = str(tmp_path / name)
    first, _, last = paths
    for path in (first, last):
        pathlib.Path(path).write_text("new")
    with pytest.raises(FileNotFoundError):
        files.publish(paths)
    for name in ("a", "b", "c"):
        assert (tmp_path / name / "old").read_text() == name
    pathlib.Path(paths.popitem()[0]).unlink()
    files.publish({first: str(tmp_path / "a")})
    assert (tmp_path / "a").read_text() == "new"


def test_two_do_not_write_to_one_place_at_a_time(tmp_path):
    place = str(tmp_path / "model")
    with files.scratch_directory(place) as directory:
        pathlib.Path(directory, "half").write_text("a")
        with pytest.raises(errors.UserError, match="another process"):
            with files.scratch_directory(place):
                pass
        assert os.listdir(directory) == ["half"]
    os.mkdir(place + files.INCOMPLETE)  # of a killed process
    pathlib.Path(place + files.INCOMPLETE, ".half").write_text("a")
    with files.scratch_directory(place) as directory:
        assert os.listdir(directory) == []
    assert os.listdir(str(tmp_path)) == []


def test_a_scratch_directory_that_is_a_link_is_not_emptied(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("a")
    (tmp_path / ("out" + files.INCOMPLETE)).symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        with files.scratch_directory(str(tmp_path / "out")):
            pass
    assert os.listdir(str(tmp_path / "other")) == ["file"]


def test_processes_that_share_a_scratch_directory_take_turns(tmp_path):
    place, done = str(tmp_path / "out"), [0, 0]

    def work(number):
        for _ in range(300):
            with contextlib.suppress(errors.UserError):
                with files.scratch_directory(place) as directory:
                    pathlib.Path(directory, "mine").write_text("a")
                    assert os.listdir(directory) == ["mine"]
                    done[number] += 1

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert sum(done) > 100
