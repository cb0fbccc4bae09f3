# SPDX-License-Identifier: Apache-2.0
"""Cutting text into chunks, and the lines of a chunk."""

import gzip
import json
import re

import numpy as np
import pytest

from common import errors
from pretraining_data import corpus, packing, text_files

EOS = 2


class Words:
    """Numbers the words of a text from 10 on; a word is a token."""

    def __init__(self):
        self.ids = {}

    def encode(self, text):
        return [
            self.ids.setdefault(word, 10 + len(self.ids))
            for word in text.split()
        ]


def chunks_of(path, size, line_bytes=corpus.BYTES_A_LINE):
    files = text_files.expand_inputs(str(path))
    limits = corpus.ChunkLimits(size, line_bytes)
    return [
        chunk
        for group in corpus.group_files(files, limits)
        for chunk in corpus.read_chunks(group, limits)
    ]


def chunk_of(tmp_path, text, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    (chunk,) = chunks_of(path, 1 << 20)
    return chunk


def random_text(state, lines):
    """Documents of lines of words, blank lines, some very long."""
    parts = []
    for _ in range(lines):
        count = state.choice([0, 1, 3, 20, 300], p=[0.3, 0.2, 0.3, 0.15, 0.05])
        words = state.choice(["a", "é", "bc", "漢字", "d" * 40], count)
        parts.append(" ".join(words) + state.choice(["", " ", "\r"]))
    return "\n".join(parts) + state.choice(["", "\n", "\n\n"])


# --- Chunks -------------------------------------------------------------------


def test_large_files_are_groups_of_their_own():
    files = [
        text_files.TextFile(str(i), size)
        for i, size in enumerate([3, 4, 5, 20, 2, 1])
    ]
    groups = corpus.group_files(files, corpus.ChunkLimits(10))
    assert [[f.size for f in g.files] for g in groups] == [
        [3, 4, 5],
        [20],
        [2, 1],
    ]
    assert [g.start for g in groups] == [0, 12, 32]


@pytest.mark.parametrize("size", [7, 64, 300, 5000])
@pytest.mark.parametrize("compress", [False, True])
def test_chunks_hold_every_byte_and_every_document(tmp_path, size, compress):
    state = np.random.RandomState(size)
    for trial in range(1 if size < 10 else 4):
        text = random_text(state, 120).encode("utf-8")
        path = tmp_path / (f"{trial}.txt{('.gz' if compress else '')}")
        path.write_bytes(gzip.compress(text) if compress else text)
        chunks = chunks_of(path, size)
        segments = [s for c in chunks for s in c.segments]
        assert b"".join(s.data for s in segments) == text
        at = 0
        for segment in segments:
            assert segment.offset == at
            assert segment.line == 1 + text[:at].count(b"\n")
            segment.data.decode("utf-8")
            at += len(segment.data)
        positions = [c.position for c in chunks]
        assert positions == sorted(positions)
        assert max(positions) < path.stat().st_size
        assert [c.index for c in chunks] == list(range(len(chunks)))

        encode = Words().encode
        streams = [
            packing.tokenize(corpus.sentences(c), encode, EOS) for c in chunks
        ]
        ids = np.concatenate([s.ids[s.ids != EOS] for s in streams])
        whole = packing.tokenize(
            corpus.sentences(chunk_of(tmp_path, text)), encode, EOS
        )
        # Words stay whole unless they are longer than a chunk.
        if size > 40:
            assert ids.tolist() == whole.ids[whole.ids != EOS].tolist()
        assert sum(s.documents for s in streams) == whole.documents


def test_a_chunk_ends_between_documents_then_lines_then_words(tmp_path):
    text = b"a b\n\nc d\n \ne f\ng h\ni j k l m n o p q r s t u v\n"
    (tmp_path / "a.txt").write_bytes(text)
    segments = [
        s
        for c in chunks_of(tmp_path / "a.txt", 18, line_bytes=1)
        for s in c.segments
    ]
    assert [s.data for s in segments] == [
        b"a b\n\nc d\n \n",
        b"e f\ng h\n",
        b"i j k l m n o p q",
        b" r s t u v\n",
    ]
    assert [s.continues_document for s in segments] == [
        False,
        False,
        True,
        True,
    ]
    assert [s.continues_line for s in segments] == [False] * 3 + [True]
    assert [s.ends_in_line for s in segments] == [False, False, True, False]


def test_a_space_at_a_cut_in_a_line_is_kept(tmp_path):
    text = b"  " + b"word " * 100 + b"\n"
    (tmp_path / "a.txt").write_bytes(text)
    parts = [
        part
        for c in chunks_of(tmp_path / "a.txt", 64)
        for part, _ in corpus.sentences(c)
    ]
    assert len(parts) > 5
    assert "".join(parts) == text.decode().strip()
    assert all(part.startswith(" word") for part in parts[1:])


def test_many_short_lines_make_a_smaller_chunk(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\n" * 4096)
    chunks = chunks_of(tmp_path / "a.txt", 4096)
    assert [sum(s.lines for s in c.segments) for c in chunks] == [128] * 32


def test_chunks_of_small_files_are_joined(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(f"one {name}\n")
    (chunk,) = chunks_of(tmp_path, 1000)
    assert list(corpus.sentences(chunk)) == [
        ("one a", corpus.DOCUMENT),
        ("one b", corpus.DOCUMENT),
        ("one c", corpus.DOCUMENT),
    ]


# --- Lines --------------------------------------------------------------------


def test_lines_are_stripped_and_blank_lines_end_documents(tmp_path):
    chunk = chunk_of(tmp_path, "\ufeff a b \r\nc\r\n \t\u3000\n\n d\ne")
    assert list(corpus.sentences(chunk)) == [
        ("a b", corpus.DOCUMENT),
        ("c", corpus.LINE),
        ("d", corpus.DOCUMENT),
        ("e", corpus.LINE),
    ]


def test_json_lines_are_documents(tmp_path):
    lines = [{"text": "a\n\nb\n", "id": 1}, {"text": " "}, {"text": "c"}]
    chunk = chunk_of(
        tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "a.jsonl"
    )
    assert list(corpus.sentences(chunk)) == [
        ("a", corpus.DOCUMENT),
        ("b", corpus.LINE),
        ("c", corpus.DOCUMENT),
    ]


def test_json_text_may_stand_in_another_field(tmp_path):
    chunk = chunk_of(tmp_path, '{"body": "a"}', "a.json")
    assert list(corpus.sentences(chunk, "body")) == [("a", corpus.DOCUMENT)]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 3 of .* is not JSON"),
        ("[]", "line 3 of .* no field 'text' but no object"),
        ('{"title": "a"}', r"line 3 of .* but \['title'\]; .*text_field"),
        (
            '{"text": 5}',
            "line 3 of .* field 'text' is a float; expected a text",
        ),
        ('{"text": "\\ud800"}', "line 3 of .* surrogate"),
        ("[" * 100000, "line 3 of .* nested too deeply"),
        ('{"text": ' + "9" * 1000000 + "}", "line 3 of .* float"),
    ],
    ids=[
        "cut off",
        "list",
        "other field",
        "number",
        "surrogate",
        "deep",
        "long number",
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    chunk = chunk_of(tmp_path, f'{{"text": "a"}}\n\n{line}\n', "a.jsonl")
    with pytest.raises(errors.UserError, match=message):
        list(corpus.sentences(chunk))


def test_giant_json_documents_are_divided_like_text(tmp_path):
    texts = [
        "a b\n\nc",
        "\n\n".join(["word " * 9 + "é"] * 30),
        "漢" * 400,
        "d",
        " \n",
        "x " * 300 + "\ny",
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"body": t}) for t in texts))
    (whole,) = chunks_of(path, 1 << 20)
    expected = list(corpus.sentences(whole, "body"))
    limits = corpus.ChunkLimits(200, line_bytes=1)
    (group,) = corpus.group_files(text_files.expand_inputs(str(path)), limits)
    chunks = list(corpus.read_chunks(group, limits, "body"))
    assert max(len(s.data) for c in chunks for s in c.segments) <= 200
    found = [s for c in chunks for s in corpus.sentences(c, "body")]
    assert "".join(t for t, _ in found) == "".join(t for t, _ in expected)
    begun = [t[:3] for t, begins in found if begins == corpus.DOCUMENT]
    assert begun == ["a b", "wor", "漢漢漢", "d", "x x"]


def test_json_lines_have_a_limit(tmp_path, monkeypatch):
    lines = [json.dumps({"text": "w " * n}) for n in (5, 100, 1, 1, 40)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(corpus, "MAX_JSON_LINE_BYTES", 150)
    with pytest.raises(errors.UserError, match="line 2 of .* longer than"):
        chunks_of(path, 50)
    path.write_text("\n".join(lines[:2]))
    with pytest.raises(errors.UserError, match="line 2 of .* longer than"):
        chunks_of(path, 1 << 20)


@pytest.mark.parametrize("size", [16, 1000])
def test_invalid_utf8_names_file_byte_and_line(tmp_path, size):
    (tmp_path / "a.txt").write_bytes(
        b"\xef\xbb\xbfgood line\n" * 3 + b"bad \xff\n"
    )
    with pytest.raises(
        errors.UserError,
        match=r"a\.txt' is not UTF-8: byte "
        "0xff at offset 43, in line 4",
    ):
        for chunk in chunks_of(tmp_path / "a.txt", size):
            list(corpus.sentences(chunk))


BAD_TEXT = b"one\nt\xe9 wo\nthree\n\nf\xc3\n"
BAD_JSON = (
    b'{"text": "one"}\n{"text": null}\n{"text": "t\xe9 wo"}\n'
    b'{"text": "\\ud800 x"}\n'
)


@pytest.mark.parametrize("size", [8, 1000])
@pytest.mark.parametrize(
    "name, data, replaced, kept, bad_lines",
    [
        (
            "a.txt",
            BAD_TEXT,
            ["one", "t\ufffd wo", "three", "f\ufffd"],
            ["one", "three"],
            [2, 5],
        ),
        (
            "a.jsonl",
            BAD_JSON,
            ["one", "t\ufffd wo", "\ufffd x"],
            ["one"],
            [2, 3, 4],
        ),
    ],
)
def test_invalid_lines_are_replaced_or_skipped_and_named(
    tmp_path, size, name, data, replaced, kept, bad_lines
):
    (tmp_path / name).write_bytes(data)
    for action, texts in (
        ("replace", replaced),
        ("skip", kept),
        ("error", kept),
    ):
        invalid = text_files.InvalidText(action)
        assert texts == [
            text
            for chunk in chunks_of(tmp_path / name, size)
            for text, _ in corpus.sentences(chunk, invalid=invalid)
        ]
        number = len(replaced) - len(kept) if action == "replace" else 0
        counts = (number, len(bad_lines) - number)
        assert (invalid.replaced, invalid.skipped) == counts
        messages = invalid.messages()
        assert len(messages) == (len(bad_lines) if action == "error" else 0)
        assert all(name in message for message in messages)
        lines = re.findall(r"\bline (\d+)", " ".join(messages))
        assert sorted(map(int, lines)) == (bad_lines if messages else [])


def test_a_skipped_line_does_not_end_its_document(tmp_path):
    chunk = chunk_of(tmp_path, b"one\n\xff\ntwo\n")
    invalid = text_files.InvalidText("skip")
    assert list(corpus.sentences(chunk, invalid=invalid)) == [
        ("one", corpus.DOCUMENT),
        ("two", corpus.LINE),
    ]


def test_many_invalid_lines_are_counted_and_each_file_is_named(tmp_path):
    invalid = text_files.InvalidText("error")
    for name in ("a.txt", "b.txt"):
        chunk = chunk_of(tmp_path, b"\xff\n" * 150, name)
        assert not list(corpus.sentences(chunk, invalid=invalid))
    messages = invalid.messages()
    assert (invalid.skipped, len(messages)) == (300, 202)
    for name, message in zip(("a.txt", "b.txt"), messages[-2:]):
        assert "50 more" in message and name in message


def test_bytes_that_are_no_text_are_cut_into_few_chunks(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\x80" * 5000)
    assert len(chunks_of(tmp_path / "a.txt", 100)) < 110
