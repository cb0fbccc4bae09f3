# SPDX-License-Identifier: Apache-2.0
"""Texts, pairs of texts and sentences of words as sequences of token ids.

    <s> A </s>
    <s> A </s></s> B </s>
    ("Dol", "kufs") -> <s> D ol Ġk uf s </s>, words at 1 and 3

The text of a sentence is its words joined by one space; the label of a word is
predicted at its first token. A sentence that is too long becomes several
windows, none of which begins or ends within a word.

Source: fairseq's RoBERTa, hub_interface.py (layout).
"""

import typing

import numpy as np

import tokenization
from common import errors, worker_pool
from tasks import conll
from training import logs

SPECIAL_TOKENS = {False: 2, True: 4}  # by whether there is a second text
_CHUNK_SIZE = 512  # texts or sentences that a process encodes at a time
_Ids = typing.Sequence[int]


def encode_each(
    items: typing.Sequence,
    create: typing.Callable,
    arguments: typing.Tuple,
    *,
    chunk_size: int,
    num_workers: int,
) -> typing.Iterator:
    """Applies a function to all items, in several processes, in their order.

    Args:
      items: what to encode.
      create: function of a module; create(*arguments) gives the function of
        one item, in each process.
      arguments: see create.
      chunk_size: items that a process gets at a time.
      num_workers: processes; 0 takes all cores.
    """
    chunks = [
        items[start : start + chunk_size]
        for start in range(0, len(items), chunk_size)
    ]
    workers = min(num_workers or worker_pool.available_cores(), len(chunks))
    results = worker_pool.map_ordered(
        iter(chunks), _chunk_encoder, (create, arguments), max(workers, 1)
    )
    for chunk in logs.counted(
        results, len(chunks), "tokenize", f"x{chunk_size}"
    ):
        yield from chunk


def _chunk_encoder(create, arguments):
    encode_item = create(*arguments)
    return lambda chunk: [encode_item(item) for item in chunk]


def joined(
    first: _Ids,
    second: typing.Optional[_Ids],
    tokenizer: tokenization.RobertaTokenizer,
) -> np.ndarray:
    """`<s> first </s>`, or the pair if there is a second text: int32 [T]."""
    end = [tokenizer.eos_id]
    ids = [tokenizer.bos_id, *first, *end]
    if second is not None:
        ids += [*end, *second, *end]
    return np.array(ids, np.int32)


# --- Texts and pairs --------------------------------------------------------


class Encoded(typing.NamedTuple):
    """Sequences and what was truncated to make them fit."""

    sequences: typing.List[np.ndarray]  # int32 [T] each
    truncated: int  # sequences that lost tokens
    cut_tokens: int  # tokens lost in all


def kept(first: int, second: int, room: int) -> typing.Tuple[int, int]:
    """Tokens that stay of two texts with `first` and `second` tokens.

    The result is that of removing single tokens from the end of the longer
    text, of the second one if both are equally long, until `room` are left.

    >>> kept(10, 3, 8)
    (5, 3)

    Source: google-research/bert, run_classifier.py.
    """
    second = min(second, max(room // 2, room - first))
    return min(first, room - second), second


def encode_pair(
    text: str,
    second: typing.Optional[str],
    tokenizer: tokenization.RobertaTokenizer,
    max_seq_length: int,
) -> typing.Tuple[np.ndarray, int]:
    """(sequence int32 [T], tokens cut off) of a text or a pair of texts.

    Args:
      text: the text.
      second: the second text of a pair, or None.
      tokenizer: gives the tokens.
      max_seq_length: tokens of a sequence; longer ones are truncated (`kept`).
    """
    first_ids = tokenizer.encode(text)
    second_ids = None if second is None else tokenizer.encode(second)
    sizes = len(first_ids), len(second_ids or ())
    left = kept(*sizes, max_seq_length - SPECIAL_TOKENS[second is not None])
    ids = joined(
        first_ids[: left[0]], second_ids and second_ids[: left[1]], tokenizer
    )
    return ids, sum(sizes) - sum(left)


def encode(
    pairs: typing.Sequence[typing.Tuple[str, typing.Optional[str]]],
    tokenizer: tokenization.RobertaTokenizer,
    max_seq_length: int,
    *,
    num_workers: int = 0,
) -> Encoded:
    """The sequences of texts and pairs, in their order.

    Args:
      pairs: (text, second text or None).
      tokenizer: gives the tokens.
      max_seq_length: tokens of a sequence; longer ones are truncated (`kept`).
      num_workers: processes; 0 takes all cores.
    """
    results = list(
        encode_each(
            pairs,
            _pair_encoder,
            (tokenizer, max_seq_length),
            chunk_size=_CHUNK_SIZE,
            num_workers=num_workers,
        )
    )
    return Encoded(
        [ids for ids, _ in results],
        sum(cut > 0 for _, cut in results),
        sum(cut for _, cut in results),
    )


def _pair_encoder(tokenizer, max_seq_length):
    return lambda pair: encode_pair(*pair, tokenizer, max_seq_length)


# --- Words ------------------------------------------------------------------


class Window(typing.NamedTuple):
    """A sequence of consecutive words of one sentence."""

    ids: np.ndarray  # int32 [T], with <s> and </s>
    places: np.ndarray  # int32 [words], of each word's first token in ids
    words: slice  # of the words of all sentences


class Windows(typing.NamedTuple):
    """Windows of all words, in their order, and what was done to fit them."""

    windows: typing.List[Window]
    split_sentences: int  # that have several windows
    cut_words: int  # longer than a window, hence truncated


def first_tokens(
    words: typing.Sequence[str],
    offsets: typing.Sequence[typing.Tuple[int, int]],
) -> np.ndarray:
    """The number of each word's first token: int [words], rising.

    Args:
      words: those that a text joins by one space.
      offsets: (start, end) of its tokens, in characters of the text, from
        tokenization.RobertaTokenizer.encode_with_offsets.

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


def spans(
    first: np.ndarray, total: int, room: int
) -> typing.Iterator[typing.Tuple[int, int]]:
    """The words of each window: yields (word, number after its last word).

    Args:
      first: int [words], from `first_tokens`.
      total: tokens of the sentence.
      room: tokens of a window. A longer word has a window for itself.
    """
    ends = np.append(first[1:], total)
    begin = 0
    while begin < len(first):
        end = np.searchsorted(ends, first[begin] + room, side="right")
        end = max(int(end), begin + 1)
        yield begin, end
        begin = end


def encode_words(
    sentences: typing.Sequence[conll.Sentence],
    tokenizer: tokenization.RobertaTokenizer,
    max_seq_length: int,
    *,
    num_workers: int = 0,
) -> Windows:
    """The windows of sentences, in their order.

    Args:
      sentences: their words.
      tokenizer: gives the tokens.
      max_seq_length: tokens of a window, including `<s>` and `</s>`.
      num_workers: processes; 0 takes all cores.

    Raises:
      errors.UserError: words are white space that shares a token.
    """
    results = list(
        encode_each(
            sentences,
            _sentence_encoder,
            (tokenizer, max_seq_length),
            chunk_size=_CHUNK_SIZE,
            num_workers=num_workers,
        )
    )
    parts = [part for parts, _ in results for part in parts]
    ends = np.cumsum([len(places) for _, places in parts])
    return Windows(
        [
            Window(ids, places, slice(int(end) - len(places), int(end)))
            for (ids, places), end in zip(parts, ends)
        ],
        sum(len(parts) > 1 for parts, _ in results),
        sum(cut_words for _, cut_words in results),
    )


def _sentence_encoder(tokenizer, max_seq_length):
    room = max_seq_length - SPECIAL_TOKENS[False]

    def encode_sentence(sentence):
        ids, offsets = tokenizer.encode_with_offsets(" ".join(sentence.words))
        try:
            first = first_tokens(sentence.words, offsets)
        except ValueError as error:
            raise errors.UserError(
                f"{sentence.place(0)}: words of the sentence that begins here "
                f"cannot be separated: {error}; remove white space from words"
            ) from error
        ends = np.append(first, len(ids))
        parts = [
            (
                joined(ids[ends[begin] : ends[end]][:room], None, tokenizer),
                (1 + first[begin:end] - first[begin]).astype(np.int32),
            )
            for begin, end in spans(first, len(ids), room)
        ]
        return parts, int((np.diff(ends) > room).sum())

    return encode_sentence
