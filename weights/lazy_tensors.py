# SPDX-License-Identifier: Apache-2.0
"""Tensors of a model as they lie in a file, and files that appear when whole.

A `Tensor` says what it is without having been read, so that names and shapes
are checked before the first byte is moved, and one tensor at a time is in
memory. Views (transposed, a part of its rows, its rows in another order) are
Tensors too.
"""

import typing

import numpy as np

from common import errors, files

# safetensors' names of the types; bfloat16 travels as its 16 bits.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}


class Tensor(typing.NamedTuple):
    """A tensor that is read when asked for."""

    dtype: str  # a key of DTYPES
    shape: typing.Tuple[int, ...]
    read: typing.Callable  # () -> array of that shape and DTYPES[dtype]
    source: str  # what its file calls it

    def __str__(self):
        return f"{self.source} {self.dtype} {shape_text(self.shape)}"


def shape_text(shape):
    """`[2, 3]`, with `*` for a free dimension (None)."""
    return "[%s]" % ", ".join(
        "*" if size is None else str(size) for size in shape
    )


def quoted(name):
    """A name from a file as it may stand in a message."""
    return repr(name if len(name) <= 100 else name[:97] + "...")


def count(shape):
    """Elements of a shape, an unbounded int."""
    product = 1
    for size in shape:
        product *= size
    return product


def is_shape(values: typing.Any) -> bool:
    """Whether values from a file can be the sizes of a tensor."""
    return (
        isinstance(values, (list, tuple))
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
    )


def read_numbers(path: str, offset: int, dtype: str, count: int) -> np.ndarray:
    """`count` numbers of a file, from a byte on.

    Raises:
      errors.UserError: the file is shorter.
    """
    data = files.read_exactly(path, offset, count * DTYPES[dtype].itemsize)
    return np.frombuffer(data, DTYPES[dtype])


def transposed(tensor):
    """[M, N] -> [N, M]."""
    return tensor._replace(
        shape=tensor.shape[::-1], read=lambda: tensor.read().T
    )


def rows(tensor, start, stop):
    """[N, ...] -> [stop - start, ...]."""
    return tensor._replace(
        shape=(stop - start,) + tensor.shape[1:],
        read=lambda: tensor.read()[start:stop],
        source=f"{tensor.source}[{start}:{stop}]",
    )


def reordered(tensor, order):
    """Row i of the result is row order[i] of the tensor."""
    return tensor._replace(read=lambda: tensor.read()[order])


def zeros(dtype, shape, source):
    """A tensor that no file holds."""
    return Tensor(
        dtype, tuple(shape), lambda: np.zeros(shape, DTYPES[dtype]), source
    )


def float32(tensor):
    """The same numbers in float32; exact for float16 and bfloat16."""
    if tensor.dtype == "F32":
        return tensor
    if tensor.dtype == "F16":
        return tensor._replace(
            dtype="F32", read=lambda: tensor.read().astype("<f4")
        )

    def widened():
        bits = tensor.read().astype("<u4") << np.uint32(16)
        return bits.view("<f4")

    return tensor._replace(dtype="F32", read=widened)


def same_bytes(first, second):
    """Whether two tensors hold the same type, shape and bits."""
    if first[:2] != second[:2]:
        return False
    return bool(
        np.array_equal(
            *(
                np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
                for tensor in (first, second)
            )
        )
    )


def read_vocabulary(path, vocab_size):
    """{token: id} of a vocab.json that goes with so many embeddings.

    Raises:
      errors.UserError: an id is no number, stands there twice, or has no row.
    """
    ids = files.read_json(path)
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < vocab_size:
            raise errors.UserError(
                f"{path} gives {quoted(token)} the id {number!r:.40}, but the "
                f"model has {vocab_size} embeddings; take the vocabulary that "
                "belongs to it"
            )
    if len(set(ids.values())) != len(ids):
        raise errors.UserError(
            f"{path} gives two tokens the same id; take the vocabulary that "
            "belongs to the model"
        )
    return ids
