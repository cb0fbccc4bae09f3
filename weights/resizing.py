# SPDX-License-Identifier: Apache-2.0
"""Embedding tables with rows for more tokens or more positions."""

import typing

import numpy as np

from common import errors
from weights import lazy_tensors

_SEED = 12345


def read_tokens(
    path: str, vocabulary: typing.Mapping[str, int], data: bytes
) -> typing.Dict[str, int]:
    """{token: id} of a file with a new token a line; ids follow the last one.

    Args:
      path: of the file, for messages.
      vocabulary: {token: id} of the model.
      data: content of the file, UTF-8.

    Raises:
      errors.UserError: names the line that is not a new token.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path}: not UTF-8 at byte {error.start}; expected a token a line"
        ) from error
    tokens: typing.Dict[str, int] = {}
    first = max(vocabulary.values()) + 1
    for number, token in enumerate(text.rstrip("\n").split("\n"), 1):
        problem = "is empty" if not token.strip() else ""
        if token in vocabulary or token in tokens:
            problem = f"repeats {lazy_tensors.quoted(token)}"
        if problem:
            raise errors.UserError(
                f"{path}, line {number}: {problem}; expected a token a line "
                "that the vocabulary does not have"
            )
        tokens[token] = first + len(tokens)
    return tokens


def with_new_rows(
    tensor: lazy_tensors.Tensor, first: int, rows: int, stddev: float
) -> lazy_tensors.Tensor:
    """[N, ...] -> [rows, ...]; those from `first` on are initial values.

    They are normal within 2 stddev, as modeling.py initializes them; the
    same at each conversion.
    """
    shape = (rows - first,) + tensor.shape[1:]

    def read():
        new = (stddev * _truncated_normal(shape)).astype(np.float32)
        return np.concatenate(
            [tensor.read()[:first], _stored(new, tensor.dtype)]
        )

    return tensor._replace(
        shape=(rows,) + tensor.shape[1:],
        read=read,
        source=f"{tensor.source}, new from row {first} on,",
    )


def interpolated(
    tensor: lazy_tensors.Tensor, first: int, rows: int
) -> lazy_tensors.Tensor:
    """[N, H] -> [rows, H]: the rows from `first` on, linearly interpolated.

    The first and the last position keep their vectors.
    """

    def read():
        table = lazy_tensors.float32(tensor).read()
        count = len(table) - first
        places = np.linspace(0, count - 1, rows - first)
        low = np.minimum(places.astype(np.int64), count - 2)
        share = (places - low)[:, None]
        low += first
        new = (1 - share) * table[low] + share * table[low + 1]
        return np.concatenate(
            [
                tensor.read()[:first],
                _stored(new.astype(np.float32), tensor.dtype),
            ]
        )

    return tensor._replace(
        shape=(rows,) + tensor.shape[1:],
        read=read,
        source=f"{tensor.source}, interpolated from {tensor.shape[0]} rows,",
    )


def _truncated_normal(shape):
    random = np.random.RandomState(_SEED)
    numbers = random.standard_normal(shape)
    outside = np.abs(numbers) > 2
    while outside.any():
        numbers[outside] = random.standard_normal(outside.sum())
        outside = np.abs(numbers) > 2
    return numbers


def _stored(numbers, dtype):
    """float32 numbers as a Tensor of that type stores them."""
    if dtype != "BF16":
        return numbers.astype(lazy_tensors.DTYPES[dtype])
    bits = np.ascontiguousarray(numbers).view("<u4")
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits >> np.uint32(16)).astype("<u2")
