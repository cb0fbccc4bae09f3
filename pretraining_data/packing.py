# SPDX-License-Identifier: Apache-2.0
"""Sentences → token streams → sequences of tokens.

Source: Liu et al. 2019, section 4.1 (FULL-SENTENCES, DOC-SENTENCES).
"""

import bisect
import dataclasses
import itertools
import re
import typing

import numpy as np

from pretraining_data import corpus

FULL_SENTENCES = "full_sentences"
DOC_SENTENCES = "doc_sentences"
# What stands for a line break.
SPACE, EOS, NONE = "space", "eos", "none"

# A longer line is encoded in parts, which bounds the memory that this takes.
_PART_CHARACTERS = 1 << 16
# Left of a space a cut changes no token: white space always begins a new piece
# of the byte-pair encoding.
_BEFORE_SPACE = re.compile(r"\S(?=[ \t])")


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """The token ids of a chunk, `</s>` between documents.

    Args:
      ids: [N] int32.
      starts, ends: of each sentence in `ids`, lists of M ints.
      document_ends: end of each sentence's document in `ids`, list of M ints.
      documents: how many documents begin here (one continued from the chunk
        before is not counted).
      tokens: how many ids are text, not `</s>`.
    """

    ids: np.ndarray
    starts: typing.List[int]
    ends: typing.List[int]
    document_ends: typing.List[int]
    documents: int
    tokens: int


def tokenize(
    sentences: typing.Iterable[typing.Tuple[str, str]],
    encode: typing.Callable[[str], typing.List[int]],
    eos_id: int,
    line_break: str = SPACE,
) -> TokenStream:
    """The token stream of a chunk.

    Args:
      sentences: of the chunk, from `corpus.sentences`.
      encode: text -> list of ids, as RobertaTokenizer.encode.
      eos_id: the id of `</s>`.
      line_break: SPACE encodes a line after the first one of its document with
        a space before it, as if they were one line; EOS puts `</s>` after each
        line, NONE nothing. WikiText-2's validation text has 251,354 tokens with
        NONE and EOS (lower case: 262,785; stripped at the right only, it would
        be 262,649).

    Example: the documents "a b⏎c" and "d" become the ids
      a b c </s> d, with starts 0 2 4, ends 2 3 5, document_ends 3 3 5; with EOS
      a b </s> c </s> </s> d.

    Raises:
      errors.UserError: as `corpus.sentences`.

    Source: fairseq-preprocess ends each line with `</s>`, also the blank one
      between documents (fairseq/binarizer.py, append_eos).
    """
    ids, starts, ends, first_sentences = [], [], [], []
    documents = tokens = 0
    for text, begins in sentences:
        if ids and line_break == EOS and begins != corpus.REST:
            ids.append(eos_id)
        if begins == corpus.DOCUMENT:
            documents += 1
            first_sentences.append(len(starts))
            if ids:
                ids.append(eos_id)
        elif begins == corpus.LINE and line_break == SPACE:
            text = " " + text
        starts.append(len(ids))
        for part in _parts(text):
            ids += encode(part)
        ends.append(len(ids))
        tokens += ends[-1] - starts[-1]
    bounds = sorted({0, len(starts)}.union(first_sentences))
    document_ends = []
    for first, after in zip(bounds, bounds[1:]):
        document_ends += [ends[after - 1]] * (after - first)
    return TokenStream(
        np.array(ids, np.int32), starts, ends, document_ends, documents, tokens
    )


def _parts(text):
    """The text itself, or parts of a giant one with the same tokens.

    Without a space near a cut, its tokens may differ.
    """
    start = 0
    while len(text) - start > _PART_CHARACTERS:
        match = _BEFORE_SPACE.search(
            text, start + _PART_CHARACTERS // 2, start + _PART_CHARACTERS
        )
        end = match.end() if match else start + _PART_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def rooms(
    max_seq_length: int,
    short_seq_prob: float = 0.0,
    random_state: typing.Optional[np.random.RandomState] = None,
) -> typing.Iterator[int]:
    """Yields for each sequence how many tokens it has room for.

    That is max_seq_length - 2, for `<s>` and `</s>`; with the probability
    `short_seq_prob` it is drawn from 2 up to that instead (all lengths alike).
    """
    room = max_seq_length - 2
    if not short_seq_prob:
        return itertools.repeat(room)
    return _drawn_rooms(room, short_seq_prob, random_state)


def _drawn_rooms(room, short_seq_prob, random_state):
    while True:
        draw, length = random_state.random_sample(2)
        shortest = min(2, room)
        yield (
            shortest + int(length * (room + 1 - shortest))
            if draw < short_seq_prob
            else room
        )


def pack(
    stream: TokenStream,
    packing: str,
    max_seq_length: int,
    sequence_rooms: typing.Optional[typing.Iterator[int]] = None,
) -> typing.Tuple[np.ndarray, np.ndarray]:
    """Cuts a token stream into sequences of whole sentences.

    A sentence that fits into a sequence is never divided: where the rest of a
    sequence is too short for it, it begins the next one. A longer sentence
    fills the rest and continues in the next. Every token of a sentence is in
    exactly one sequence; a `</s>` between documents is left out where a
    sequence ends between them.

    Example: sentences of 2, 2 and 7 tokens in one document with room for 5
      become sequences of 5 (2 + 2 + 1), 5 and 1 tokens.

    Args:
      stream: the tokens.
      packing: FULL_SENTENCES, or DOC_SENTENCES (no sequence crosses documents).
      max_seq_length: at least 3.
      sequence_rooms: an iterator as of `rooms`.

    Returns:
      (starts, ends) of the sequences in stream.ids, each [K] int64.

    Source: Liu et al. 2019, section 4.1.
    """
    longest = max_seq_length - 2
    sequence_rooms = sequence_rooms or rooms(max_seq_length)
    starts, ends = stream.starts, stream.ends
    cuts, sentence, position = [], 0, 0
    while sentence < len(starts):
        limit = position + next(sequence_rooms)
        if packing == DOC_SENTENCES:
            limit = min(limit, stream.document_ends[sentence])
        # The first sentence that does not end within the limit.
        after = bisect.bisect_right(ends, limit, sentence)
        divided = (
            after < len(starts)
            and starts[after] < limit
            and (after == sentence or ends[after] - starts[after] > longest)
        )
        end = limit if divided else ends[after - 1]
        cuts.append((position, end))
        sentence = after
        if divided:
            position = end
        elif after < len(starts):
            position = starts[after]
    cuts = np.array(cuts, np.int64).reshape(-1, 2)
    return cuts[:, 0], cuts[:, 1]


def padded(
    stream: TokenStream,
    starts: np.ndarray,
    ends: np.ndarray,
    max_seq_length: int,
    *,
    bos_id: int,
    pad_id: int,
    eos_id: int,
) -> typing.Tuple[np.ndarray, np.ndarray]:
    """The ids of K sequences, `<s> ... </s>` and `<pad>` up to the length S.

    Returns:
      (input_ids [K, S] int32, lengths [K] int64 with `<s>` and `</s>`).
    """
    lengths = ends - starts
    input_ids = np.full([len(starts), max_seq_length], pad_id, np.int32)
    input_ids[:, 0] = bos_id
    columns = np.arange(max_seq_length - 2)
    is_text = columns < lengths[:, None]  # [K, S - 2]
    sources = (starts[:, None] + columns)[is_text]
    input_ids[:, 1:-1][is_text] = stream.ids[sources]
    input_ids[np.arange(len(starts)), lengths + 1] = eos_id
    return input_ids, lengths + 2
