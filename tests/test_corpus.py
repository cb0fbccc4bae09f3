# SPDX-License-Identifier: Apache-2.0
"""Reading text in chunks, and packing it without losing a token."""
import gzip
import json

import numpy as np
import pytest

import corpus
import errors

EOS = 2


class Words:
    """Numbers the words of a text from 10 on; a word is a token."""

    def __init__(self):
        self.ids = {}

    def encode(self, text):
        return [self.ids.setdefault(word, 10 + len(self.ids))
                for word in text.split()]


def chunks_of(path, size, line_bytes=corpus.BYTES_A_LINE):
    files = corpus.expand_inputs(str(path))
    limits = corpus.ChunkLimits(size, line_bytes)
    return [chunk for group in corpus.group_files(files, limits)
            for chunk in corpus.read_chunks(group, limits)]


def chunk_of(tmp_path, text, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    chunk, = chunks_of(path, 1 << 20)
    return chunk


def stream_of(*document_lengths):
    """A token stream: for each document the lengths of its sentences."""
    ids, starts, ends, document_ends = [], [], [], []
    for lengths in document_lengths:
        if ids:
            ids.append(EOS)
        for length in lengths:
            starts.append(len(ids))
            ids += range(100 + len(ids), 100 + len(ids) + length)
            ends.append(len(ids))
        document_ends += [len(ids)] * len(lengths)
    return corpus.TokenStream(np.array(ids, np.int32), starts, ends,
                              document_ends, len(document_lengths),
                              sum(map(sum, document_lengths)))


def pack(stream, packing=corpus.FULL_SENTENCES, max_seq_length=7, rooms=None):
    starts, ends = corpus.pack(stream, packing, max_seq_length, rooms)
    return list(zip(starts.tolist(), ends.tolist()))


def random_text(state, lines):
    """Documents of lines of words, blank lines, some very long."""
    parts = []
    for _ in range(lines):
        count = state.choice([0, 1, 3, 20, 300], p=[.3, .2, .3, .15, .05])
        words = state.choice(["a", "é", "bc", "漢字", "d" * 40], count)
        parts.append(" ".join(words) + state.choice(["", " ", "\r"]))
    return "\n".join(parts) + state.choice(["", "\n", "\n\n"])


# --- Files --------------------------------------------------------------------

def test_inputs_are_files_globs_and_directories_in_order(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden", "sub/c", "old.tfrecord",
                 "manifest.json", "progress.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text\n")

    def names(text):
        return [f.path[len(str(tmp_path)) + 1:]
                for f in corpus.expand_inputs(text)]

    assert names(str(tmp_path)) == ["a.txt", "b.txt", "sub/c"]
    assert names("%s/*.txt, %s/a.txt" % (tmp_path, tmp_path)) == [
        "a.txt", "b.txt", "a.txt"]


@pytest.mark.parametrize("name", ["gone.txt", "gone*", "folder"])
def test_an_input_that_is_not_there_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.UserError, match="there is no file .*" + name[:4]):
        corpus.expand_inputs(str(tmp_path / name))


def test_empty_files_and_pipes_are_errors(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(errors.UserError, match="holds no text"):
        corpus.expand_inputs(str(tmp_path / "empty.txt"))
    with pytest.raises(errors.UserError, match="no regular file"):
        corpus.expand_inputs("/dev/null")


def test_large_files_are_groups_of_their_own():
    files = [corpus.TextFile(str(i), size)
             for i, size in enumerate([3, 4, 5, 20, 2, 1])]
    groups = corpus.group_files(files, corpus.ChunkLimits(10))
    assert [[f.size for f in g.files] for g in groups] == [[3, 4, 5], [20],
                                                          [2, 1]]
    assert [g.start for g in groups] == [0, 12, 32]


# --- Chunks -------------------------------------------------------------------

@pytest.mark.parametrize("size", [7, 64, 300, 5000])
@pytest.mark.parametrize("compress", [False, True])
def test_chunks_hold_every_byte_and_every_document(tmp_path, size, compress):
    state = np.random.RandomState(size)
    for trial in range(1 if size < 10 else 4):
        text = random_text(state, 120).encode("utf-8")
        path = tmp_path / ("%d.txt%s" % (trial, ".gz" if compress else ""))
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
        streams = [corpus.tokenize(c, encode, EOS) for c in chunks]
        ids = np.concatenate([s.ids[s.ids != EOS] for s in streams])
        whole = corpus.tokenize(chunk_of(tmp_path, text), encode, EOS)
        # Words stay whole unless they are longer than a chunk.
        if size > 40:
            assert ids.tolist() == whole.ids[whole.ids != EOS].tolist()
        assert sum(s.documents for s in streams) == whole.documents


def test_a_chunk_ends_between_documents_then_lines_then_words(tmp_path):
    text = b"a b\n\nc d\n \ne f\ng h\ni j k l m n o p q r s t u v\n"
    (tmp_path / "a.txt").write_bytes(text)
    segments = [s for c in chunks_of(tmp_path / "a.txt", 18, line_bytes=1)
                for s in c.segments]
    assert [s.data for s in segments] == [
        b"a b\n\nc d\n \n", b"e f\ng h\n", b"i j k l m n o p q", b" r s t u v\n"]
    assert [s.continues_document for s in segments] == [False, False, True,
                                                        True]
    assert [s.continues_line for s in segments] == [False] * 3 + [True]
    assert [s.ends_in_line for s in segments] == [False, False, True, False]


def test_a_space_at_a_cut_in_a_line_is_kept(tmp_path):
    text = b"  " + b"word " * 100 + b"\n"
    (tmp_path / "a.txt").write_bytes(text)
    parts = [part for c in chunks_of(tmp_path / "a.txt", 64)
             for part, _ in corpus.sentences(c)]
    assert len(parts) > 5
    assert "".join(parts) == text.decode().strip()
    assert all(part.startswith(" word") for part in parts[1:])


def test_many_short_lines_make_a_smaller_chunk(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\n" * 4096)
    chunks = chunks_of(tmp_path / "a.txt", 4096)
    assert [sum(s.lines for s in c.segments) for c in chunks] == [128] * 32


def test_chunks_of_small_files_are_joined(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text("one %s\n" % name)
    chunk, = chunks_of(tmp_path, 1000)
    assert list(corpus.sentences(chunk)) == [("one a", True), ("one b", True),
                                             ("one c", True)]


# --- Lines --------------------------------------------------------------------

def test_lines_are_stripped_and_blank_lines_end_documents(tmp_path):
    chunk = chunk_of(tmp_path, "\ufeff a b \r\nc\r\n \t\u3000\n\n d\ne")
    assert list(corpus.sentences(chunk)) == [
        ("a b", True), ("c", False), ("d", True), ("e", False)]


def test_json_lines_are_documents(tmp_path):
    lines = [{"text": "a\n\nb\n", "id": 1}, {"text": " "}, {"text": "c"}]
    chunk = chunk_of(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n",
                     "a.jsonl")
    assert list(corpus.sentences(chunk)) == [("a", True), ("b", False),
                                             ("c", True)]


def test_json_text_may_stand_in_another_field(tmp_path):
    chunk = chunk_of(tmp_path, '{"body": "a"}', "a.json")
    assert list(corpus.sentences(chunk, "body")) == [("a", True)]


@pytest.mark.parametrize("line, message", [
    ("{", "line 3 of .* is no JSON"),
    ("[]", "line 3 of .* no field 'text' but no object"),
    ('{"title": "a"}', r"line 3 of .* but the fields \['title'\]; .*text_field"),
    ('{"text": 5}', "line 3 of .* field 'text' is a float; expected a text"),
    ('{"text": "\\ud800"}', "line 3 of .* surrogate"),
    ("[" * 100000, "line 3 of .* nested too deeply"),
    ('{"text": ' + "9" * 1000000 + "}", "line 3 of .* float"),
])
def test_a_bad_json_line_is_named(tmp_path, line, message):
    chunk = chunk_of(tmp_path, '{"text": "a"}\n\n%s\n' % line, "a.jsonl")
    with pytest.raises(errors.UserError, match=message):
        list(corpus.sentences(chunk))


def test_giant_json_documents_are_divided_like_text(tmp_path):
    texts = ["a b\n\nc", "\n\n".join(["word " * 9 + "é"] * 30), "漢" * 400,
             "d", " \n", "x " * 300 + "\ny"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"body": t}) for t in texts))
    whole, = chunks_of(path, 1 << 20)
    expected = list(corpus.sentences(whole, "body"))
    limits = corpus.ChunkLimits(200, line_bytes=1)
    group, = corpus.group_files(corpus.expand_inputs(str(path)), limits)
    chunks = list(corpus.read_chunks(group, limits, "body"))
    assert max(len(s.data) for c in chunks for s in c.segments) <= 200
    found = [s for c in chunks for s in corpus.sentences(c, "body")]
    assert "".join(t for t, _ in found) == "".join(t for t, _ in expected)
    begun = [t[:3] for t, begins in found if begins]
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
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgood line\n" * 3
                                     + b"bad \xff\n")
    with pytest.raises(errors.UserError, match=r"a\.txt' is not UTF-8: byte "
                       "0xff at offset 43, in line 4"):
        for chunk in chunks_of(tmp_path / "a.txt", size):
            list(corpus.sentences(chunk))


def test_gzip_files_may_have_several_members_and_padding(tmp_path):
    parts = [b"a" * 200000 + b"\n", b"", b"b\n"]
    path = tmp_path / "a.gz"
    path.write_bytes(b"".join(map(gzip.compress, parts)) + bytes(100000))
    data = b"".join(s.data for c in chunks_of(path, 1000) for s in c.segments)
    assert data == b"".join(parts)


def test_damaged_gzip_files_are_errors(tmp_path):
    state = np.random.RandomState(0)
    whole = gzip.compress(state.bytes(100000))
    flipped = bytearray(whole)
    flipped[50000] ^= 0xFF
    for data, message in [(whole[:-20], "truncated gzip"),
                          (whole[:5], "truncated gzip"),
                          (bytes(flipped), "no intact gzip"),
                          (b"plain text\n", "no intact gzip"),
                          (whole + b"rest", "no intact gzip")]:
        (tmp_path / "a.gz").write_bytes(data)
        with pytest.raises(errors.UserError, match=r"a\.gz' is .*" + message):
            chunks_of(tmp_path / "a.gz", 1000)


def test_giant_lines_are_encoded_in_parts_at_spaces(tmp_path):
    encoded = []

    def encode(text):
        encoded.append(text)
        return [1] * len(text)
    line = "word, é " * 40000 + "x" * 200000
    stream = corpus.tokenize(chunk_of(tmp_path, line), encode, EOS)
    assert "".join(encoded) == line and len(encoded) > 5
    assert max(map(len, encoded)) <= 1 << 16
    assert all(text.startswith((" é", " word")) for text in encoded[1:4])
    assert stream.ends == [len(line)]


# --- Packing ------------------------------------------------------------------

def test_tokenize_puts_eos_between_documents(tmp_path):
    stream = corpus.tokenize(chunk_of(tmp_path, "a b\nc\n\nd\n"),
                             Words().encode, EOS)
    assert stream.ids.tolist() == [10, 11, 12, EOS, 13]
    assert stream.starts == [0, 2, 4]
    assert stream.ends == [2, 3, 5]
    assert stream.document_ends == [3, 3, 5]
    assert (stream.documents, stream.tokens) == (2, 4)


def test_full_sentences_by_hand():
    # Room for 5: two sentences and the </s> between their documents just fit.
    assert pack(stream_of([2], [2])) == [(0, 5)]
    # A sentence that does not fit begins the next sequence, whole.
    assert pack(stream_of([2, 4])) == [(0, 2), (2, 6)]
    # No </s> stands at the edge of a sequence beside the one that ends it.
    assert pack(stream_of([4], [2])) == [(0, 4), (5, 7)]
    assert pack(stream_of([5], [2])) == [(0, 5), (6, 8)]
    # A sentence longer than a sequence fills the rest and goes on.
    assert pack(stream_of([2, 2, 7])) == [(0, 5), (5, 10), (10, 11)]
    assert pack(stream_of([6], [3])) == [(0, 5), (5, 10)]
    assert pack(stream_of([4], [6])) == [(0, 4), (5, 10), (10, 11)]


def test_doc_sentences_by_hand():
    doc = corpus.DOC_SENTENCES
    assert pack(stream_of([2], [2]), doc) == [(0, 2), (3, 5)]
    assert pack(stream_of([2, 2], [1, 5]), doc) == [(0, 4), (5, 6), (6, 11)]
    assert pack(stream_of([7], [1]), doc) == [(0, 5), (5, 7), (8, 9)]


@pytest.mark.parametrize("packing", [corpus.FULL_SENTENCES,
                                     corpus.DOC_SENTENCES])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.5])
def test_packing_keeps_every_token_once_and_in_order(packing, short_seq_prob):
    state = np.random.RandomState(1)
    for _ in range(200):
        longest = state.randint(1, 30)
        stream = stream_of(*[
            state.randint(1, state.choice([3, 12, 70]), state.randint(1, 6))
            for _ in range(state.randint(1, 8))])
        cuts = pack(stream, packing, longest + 2, corpus.rooms(
            longest + 2, short_seq_prob, state))
        kept = np.concatenate([stream.ids[a:b] for a, b in cuts])
        assert (kept[kept != EOS].tolist()
                == stream.ids[stream.ids != EOS].tolist())
        assert all(0 < end - start <= longest for start, end in cuts)
        assert all(stream.ids[start] != EOS != stream.ids[end - 1]
                   for start, end in cuts)
        inner = set(stream.ends)
        for start, end, document_end in zip(stream.starts, stream.ends,
                                            stream.document_ends):
            cut_inside = [e for _, e in cuts if start < e < end]
            if not short_seq_prob:
                assert not cut_inside or end - start > longest
            if packing == corpus.DOC_SENTENCES:
                assert all(b <= document_end or a >= document_end
                           for a, b in cuts)
        if packing == corpus.FULL_SENTENCES and not short_seq_prob:
            # A sequence is short only where the next sentence begins.
            assert all(end - start == longest or end in inner
                       for start, end in cuts)


def test_an_empty_stream_has_no_sequences(tmp_path):
    chunk = chunk_of(tmp_path, " \n\n")
    stream = corpus.tokenize(chunk, Words().encode, EOS)
    assert stream.documents == stream.tokens == 0
    assert pack(stream) == []


def test_short_rooms_have_their_share_and_all_lengths():
    drawn = corpus.rooms(10, 0.3, np.random.RandomState(3))
    counts = np.bincount([next(drawn) for _ in range(20000)]) / 20000
    assert counts[:2].tolist() == [0, 0] and len(counts) == 9
    assert abs(counts[8] - (0.7 + 0.3 / 7)) < 0.02
    assert np.abs(counts[2:8] - 0.3 / 7).max() < 0.01
    tiny = corpus.rooms(3, 1.0, np.random.RandomState(3))
    assert {next(tiny) for _ in range(10)} == {1}


def test_padded_rows():
    stream = stream_of([2, 3], [1])
    starts, ends = np.array([0, 2, 6]), np.array([2, 5, 7])
    input_ids, lengths = corpus.padded(stream, starts, ends, 5, bos_id=0,
                                       pad_id=1, eos_id=EOS)
    assert input_ids.tolist() == [[0, 100, 101, EOS, 1],
                                  [0, 102, 103, 104, EOS], [0, 106, EOS, 1, 1]]
    assert lengths.tolist() == [4, 5, 3]
