# SPDX-License-Identifier: Apache-2.0
"""Packing sentences into sequences without losing a token."""

import numpy as np
import pytest

from helpers.streams import EOS, pack, stream_of
from pretraining_data import corpus, packing


def sentences_of(text):
    chunk = corpus.Chunk(
        0,
        0,
        0,
        (
            corpus.Segment(
                "a.txt",
                0,
                1,
                text.encode("utf-8"),
                is_json=False,
                continues_document=False,
                continues_line=False,
                ends_in_line=False,
            ),
        ),
    )
    return corpus.sentences(chunk)


def word_encoder():
    """Numbers the words of a text from 10 on; a word is a token."""
    ids = {}
    return lambda text: [
        ids.setdefault(word, 10 + len(ids)) for word in text.split()
    ]


def test_tokenize_puts_eos_between_documents():
    stream = packing.tokenize(
        sentences_of("a b\nc\n\nd\n"), word_encoder(), EOS
    )
    assert stream.ids.tolist() == [10, 11, 12, EOS, 13]
    assert stream.starts == [0, 2, 4]
    assert stream.ends == [2, 3, 5]
    assert stream.document_ends == [3, 3, 5]
    assert (stream.documents, stream.tokens) == (2, 4)


@pytest.mark.parametrize(
    "line_break, expected",
    [
        ("space", "a b c|d e"),
        ("none", "a bc|de"),
        # fairseq-preprocess: one for each line, also a blank one.
        ("eos", "a b|c||d|e"),
    ],
)
def test_a_line_break_becomes_a_space_or_eos_or_nothing(line_break, expected):
    stream = packing.tokenize(
        sentences_of("a b\n c\n\nd\ne\n"),
        lambda line: list(map(ord, line)),
        ord("|"),
        line_break,
    )
    assert "".join(map(chr, stream.ids)) == expected
    assert stream.tokens == len(expected.replace("|", ""))
    assert stream.documents == 2


def test_no_eos_begins_or_ends_a_sequence_of_lines():
    stream = packing.tokenize(
        sentences_of("a b c\nd e\nf g\n\nh i\nj\n"),
        word_encoder(),
        EOS,
        packing.EOS,
    )
    room_for_6 = dict(max_seq_length=8)
    kept = [stream.ids[a:b].tolist() for a, b in pack(stream, **room_for_6)]
    # a b c </s> d e | f g </s> </s> h i | j
    assert kept == [[10, 11, 12, EOS, 13, 14], [15, 16, EOS, EOS, 17, 18], [19]]
    kept = pack(stream, packing.DOC_SENTENCES, **room_for_6)
    assert [stream.ids[a:b].tolist() for a, b in kept] == [
        [10, 11, 12, EOS, 13, 14],
        [15, 16],
        [17, 18, EOS, 19],
    ]


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
    doc = packing.DOC_SENTENCES
    assert pack(stream_of([2], [2]), doc) == [(0, 2), (3, 5)]
    assert pack(stream_of([2, 2], [1, 5]), doc) == [(0, 4), (5, 6), (6, 11)]
    assert pack(stream_of([7], [1]), doc) == [(0, 5), (5, 7), (8, 9)]


@pytest.mark.parametrize(
    "kind", [packing.FULL_SENTENCES, packing.DOC_SENTENCES]
)
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.5])
def test_packing_keeps_every_token_once_and_in_order(kind, short_seq_prob):
    state = np.random.RandomState(1)
    for _ in range(200):
        longest = state.randint(1, 30)
        stream = stream_of(
            *[
                state.randint(1, state.choice([3, 12, 70]), state.randint(1, 6))
                for _ in range(state.randint(1, 8))
            ]
        )
        cuts = pack(
            stream,
            kind,
            longest + 2,
            packing.rooms(longest + 2, short_seq_prob, state),
        )
        kept = np.concatenate([stream.ids[a:b] for a, b in cuts])
        assert (
            kept[kept != EOS].tolist() == stream.ids[stream.ids != EOS].tolist()
        )
        assert all(0 < end - start <= longest for start, end in cuts)
        assert all(
            stream.ids[start] != EOS != stream.ids[end - 1]
            for start, end in cuts
        )
        inner = set(stream.ends)
        for start, end, document_end in zip(
            stream.starts, stream.ends, stream.document_ends
        ):
            cut_inside = [e for _, e in cuts if start < e < end]
            if not short_seq_prob:
                assert not cut_inside or end - start > longest
            if kind == packing.DOC_SENTENCES:
                assert all(
                    b <= document_end or a >= document_end for a, b in cuts
                )
        if kind == packing.FULL_SENTENCES and not short_seq_prob:
            # A sequence is short only where the next sentence begins.
            assert all(
                end - start == longest or end in inner for start, end in cuts
            )


def test_an_empty_stream_has_no_sequences():
    stream = packing.tokenize(sentences_of(" \n\n"), word_encoder(), EOS)
    assert stream.documents == stream.tokens == 0
    assert pack(stream) == []


def test_short_rooms_have_their_share_and_all_lengths():
    drawn = packing.rooms(10, 0.3, np.random.RandomState(3))
    counts = np.bincount([next(drawn) for _ in range(20000)]) / 20000
    assert counts[:2].tolist() == [0, 0] and len(counts) == 9
    assert abs(counts[8] - (0.7 + 0.3 / 7)) < 0.02
    assert np.abs(counts[2:8] - 0.3 / 7).max() < 0.01
    tiny = packing.rooms(3, 1.0, np.random.RandomState(3))
    assert {next(tiny) for _ in range(10)} == {1}


def test_padded_rows():
    stream = stream_of([2, 3], [1])
    starts, ends = np.array([0, 2, 6]), np.array([2, 5, 7])
    input_ids, lengths = packing.padded(
        stream, starts, ends, 5, bos_id=0, pad_id=1, eos_id=EOS
    )
    assert input_ids.tolist() == [
        [0, 100, 101, EOS, 1],
        [0, 102, 103, 104, EOS],
        [0, 106, EOS, 1, 1],
    ]
    assert lengths.tolist() == [4, 5, 3]


def test_giant_lines_are_encoded_in_parts_at_spaces():
    encoded = []

    def encode(text):
        encoded.append(text)
        return [1] * len(text)

    line = "word, é " * 40000 + "x" * 200000
    stream = packing.tokenize(sentences_of(line), encode, EOS)
    assert "".join(encoded) == line and len(encoded) > 5
    assert max(map(len, encoded)) <= 1 << 16
    assert all(text.startswith((" é", " word")) for text in encoded[1:4])
    assert stream.ends == [len(line)]
