# SPDX-License-Identifier: Apache-2.0
"""Sentences of words as sequences of token ids, and where each word begins.

    ("Dol", "kufs") -> <s> D ol Ġk uf s </s>, words at 1 and 3

The text of a sentence is its words joined by one space; a word stands for its
first token. A sentence that is too long becomes several windows, none of
which begins or ends within a word.
"""

import typing

import numpy as np
import tqdm

from common import errors, worker_pool
from tasks import sequences

_CHUNK_SIZE = 512  # sentences in one piece of work for a process


class Window(typing.NamedTuple):
    """A sequence of consecutive words of one sentence."""

    ids: np.ndarray  # int32 [T], with <s> and </s>
    places: np.ndarray  # int32 [words], of each word's first token in ids
    first_word: int  # among the words of all sentences


class Encoded(typing.NamedTuple):
    """Windows of all words, in their order, and what was done to fit them."""

    windows: list
    split_sentences: int  # that have several windows
    cut_words: int  # longer than a window: their end is left out


def first_tokens(words, offsets):
    """The number of each word's first token: int [words], rising.

    Args:
      words: what a text joins by one space.
      offsets: list of (start, end) of its tokens, in characters of the text,
        as tokenization.RobertaTokenizer.encode_with_offsets gives them.

    Raises:
      ValueError: two words share a token, as white space may.
    """
    lengths = np.array([len(word) for word in words])
    word_ends = np.cumsum(lengths + 1) - 1
    token_starts, token_ends = np.array(offsets).T
    # The first token that ends after the word's start.
    first = np.searchsorted(token_ends, word_ends - lengths, side="right")
    shared = np.flatnonzero(first[1:] <= first[:-1])
    if shared.size:
        raise ValueError(
            f"{words[shared[0]]!r} and {words[shared[0] + 1]!r} share a token"
        )
    if (token_starts[first] >= word_ends).any():
        raise ValueError("a word has no token")
    return first


def spans(first, total, room):
    """The words of each window: yields (word, number after its last word).

    Args:
      first: int [words], what `first_tokens` gives.
      total: tokens of the sentence.
      room: tokens of a window. A longer word has one of its own.
    """
    ends = np.append(first[1:], total)
    begin = 0
    while begin < len(first):
        end = np.searchsorted(ends, first[begin] + room, side="right")
        end = max(int(end), begin + 1)
        yield begin, end
        begin = end


def encode(sentences, tokenizer, max_seq_length, *, num_workers=0):
    """The windows of sentences, from several processes.

    Args:
      sentences: list of conll.Sentence.
      tokenizer: tokenization.RobertaTokenizer.
      max_seq_length: tokens of a window, `<s>` and `</s>` among them.
      num_workers: processes; 0 takes all cores.

    Returns:
      Encoded, in the order of the sentences.

    Raises:
      errors.UserError: words are white space that runs into one token.
    """
    chunks = [
        sentences[start : start + _CHUNK_SIZE]
        for start in range(0, len(sentences), _CHUNK_SIZE)
    ]
    workers = min(num_workers or worker_pool.available_cores(), len(chunks))
    results = worker_pool.map_ordered(
        iter(chunks), _encoder, (tokenizer, max_seq_length), max(workers, 1)
    )
    windows, split, cut, words = [], 0, 0, 0
    # Less than some chunks take no time worth a bar.
    for chunk in tqdm.tqdm(
        results,
        total=len(chunks),
        desc="tokenize",
        unit=f"x{_CHUNK_SIZE}",
        mininterval=2.0,
        disable=len(chunks) < 10,
    ):
        for parts, cut_words in chunk:
            split += len(parts) > 1
            cut += cut_words
            for ids, places in parts:
                windows.append(Window(ids, places, words))
                words += len(places)
    return Encoded(windows, split, cut)


def _encoder(tokenizer, max_seq_length):
    room = max_seq_length - sequences.SPECIAL_TOKENS[False]

    def one(sentence):
        ids, offsets = tokenizer.encode_with_offsets(" ".join(sentence.words))
        try:
            first = first_tokens(sentence.words, offsets)
        except ValueError as error:
            raise errors.UserError(
                f"{sentence.place(0)}: a sentence begins whose words {error}; "
                "take white space out of words"
            ) from error
        parts = []
        for begin, end in spans(first, len(ids), room):
            tokens = ids[
                first[begin] : first[end] if end < len(first) else len(ids)
            ]
            parts.append(
                (
                    sequences.joined(tokens[:room], None, tokenizer),
                    (1 + first[begin:end] - first[begin]).astype(np.int32),
                )
            )
        lengths = np.diff(np.append(first, len(ids)))
        return parts, int((lengths > room).sum())

    return lambda chunk: [one(sentence) for sentence in chunk]
