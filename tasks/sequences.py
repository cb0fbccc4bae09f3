# SPDX-License-Identifier: Apache-2.0
"""Texts and pairs of texts as sequences of token ids.

    <s> A </s>
    <s> A </s></s> B </s>

Source: fairseq's RoBERTa, hub_interface.py (layout).
"""

import typing

import numpy as np
import tqdm

from common import worker_pool

SPECIAL_TOKENS = {False: 2, True: 4}  # by whether there is a second text
_CHUNK_SIZE = 512  # texts in one piece of work for a process


class Encoded(typing.NamedTuple):
    """Sequences and what was cut off to make them fit."""

    sequences: list  # int32 [T] each
    truncated: int  # sequences that lost tokens
    cut_tokens: int  # tokens lost in all


def kept(first, second, room):
    """How many tokens of two texts stay: the longer one is cut first.

    Cutting one token at a time off the end of the longer one, of the second
    where they are equal, gives the same.

    >>> kept(10, 3, 8)
    (5, 3)

    Args:
      first, second: tokens that the texts have.
      room: tokens that both may have together.

    Source: google-research/bert, run_classifier.py.
    """
    if first + second <= room:
        return first, second
    half = room // 2
    if second <= half:
        return room - second, second
    if first <= room - half:
        return first, room - first
    return room - half, half


def joined(first, second, tokenizer):
    """`<s> first </s>`, or with a second one the pair: int32 [T].

    Args:
      first: token ids.
      second: token ids, or None.
      tokenizer: tokenization.RobertaTokenizer.
    """
    end = [tokenizer.eos_id]
    ids = [tokenizer.bos_id] + list(first) + end
    if second is not None:
        ids += end + list(second) + end
    return np.array(ids, np.int32)


def encode_pair(text, second, tokenizer, max_seq_length):
    """(sequence int32 [T], tokens cut off) of a text or a pair of texts.

    Args:
      text: str.
      second: str, or None.
      tokenizer: tokenization.RobertaTokenizer.
      max_seq_length: tokens of a sequence; longer ones are cut (`kept`).
    """
    first = tokenizer.encode(text)
    other = None if second is None else tokenizer.encode(second)
    sizes = len(first), len(other or ())
    left = kept(*sizes, max_seq_length - SPECIAL_TOKENS[other is not None])
    ids = joined(
        first[: left[0]], None if other is None else other[: left[1]], tokenizer
    )
    return ids, sum(sizes) - sum(left)


def encode(pairs, tokenizer, max_seq_length, *, num_workers=0):
    """The sequences of texts and pairs, from several processes.

    Args:
      pairs: list of (text, second text or None).
      tokenizer: tokenization.RobertaTokenizer.
      max_seq_length: tokens of a sequence; longer ones are cut (`kept`).
      num_workers: processes; 0 takes all cores.

    Returns:
      Encoded, in the order of `pairs`.
    """
    chunks = [
        pairs[start : start + _CHUNK_SIZE]
        for start in range(0, len(pairs), _CHUNK_SIZE)
    ]
    workers = min(num_workers or worker_pool.available_cores(), len(chunks))
    sequences, lost = [], []
    results = worker_pool.map_ordered(
        iter(chunks), _encoder, (tokenizer, max_seq_length), max(workers, 1)
    )
    # Less than some chunks take no time worth a bar.
    for chunk in tqdm.tqdm(
        results,
        total=len(chunks),
        desc="tokenize",
        unit=f"x{_CHUNK_SIZE}",
        mininterval=2.0,
        disable=len(chunks) < 10,
    ):
        for ids, cut in chunk:
            sequences.append(ids)
            lost.append(cut)
    return Encoded(sequences, sum(1 for cut in lost if cut), sum(lost))


def _encoder(tokenizer, max_seq_length):
    return lambda chunk: [
        encode_pair(*pair, tokenizer, max_seq_length) for pair in chunk
    ]
