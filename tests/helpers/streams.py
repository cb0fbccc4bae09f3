# SPDX-License-Identifier: Apache-2.0
"""Token streams of given sentence lengths, and how they are packed."""

import typing

import numpy as np

from pretraining_data import packing

EOS = 2


def stream_of(*document_lengths: typing.List[int]) -> packing.TokenStream:
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
    return packing.TokenStream(
        np.array(ids, np.int32),
        starts,
        ends,
        document_ends,
        len(document_lengths),
        sum(map(sum, document_lengths)),
    )


def pack(
    stream: packing.TokenStream,
    kind: str = packing.FULL_SENTENCES,
    max_seq_length: int = 7,
    rooms: typing.Optional[typing.Iterator[int]] = None,
) -> typing.List[typing.Tuple[int, int]]:
    """(start, end) of each sequence."""
    starts, ends = packing.pack(stream, kind, max_seq_length, rooms)
    return list(zip(starts.tolist(), ends.tolist()))
