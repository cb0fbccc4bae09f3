# SPDX-License-Identifier: Apache-2.0
"""Tensors of a model that are read from their file when asked for.

Names and shapes are checked before the first byte is read, and one tensor at a
time is in memory. Views (transposed, some of its rows, its rows in another
order) are Tensors too.
"""

import typing

import numpy as np

from common import files

# safetensors' names of the types; bfloat16 is handled as its 16 bits.
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

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return count(self.shape) * DTYPES[self.dtype].itemsize


Shape = typing.Sequence[int]


def shape_text(shape: typing.Sequence[typing.Optional[int]]) -> str:
    """`[2, 3]`, with `*` for a free dimension (None)."""
    sizes = ["*" if size is None else str(size) for size in shape]
    return f"[{', '.join(sizes)}]"


def quoted(name: object) -> str:
    """A name from a file for a message: quoted, and cut if it is long."""
    text = str(name)
    return repr(text if len(text) <= 100 else text[:97] + "...")


def count(shape: Shape) -> int:
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


def stored(
    path: str, offset: int, dtype: str, shape: Shape, source: str
) -> Tensor:
    """The tensor whose numbers start at a byte of a file."""

    def read():
        return read_numbers(path, offset, dtype, count(shape)).reshape(shape)

    return Tensor(dtype, tuple(shape), read, source)


def transposed(tensor: Tensor) -> Tensor:
    """[M, N] -> [N, M]."""
    return tensor._replace(
        shape=tensor.shape[::-1], read=lambda: tensor.read().T
    )


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """[N, ...] -> [stop - start, ...]."""
    return tensor._replace(
        shape=(stop - start,) + tensor.shape[1:],
        read=lambda: tensor.read()[start:stop],
        source=f"{tensor.source}[{start}:{stop}]",
    )


def reordered(tensor: Tensor, order: np.ndarray) -> Tensor:
    """Row i of the result is row order[i] of the tensor."""
    return tensor._replace(read=lambda: tensor.read()[order])


def zeros(dtype: str, shape: Shape, source: str) -> Tensor:
    """A tensor that is in no file."""
    return Tensor(
        dtype, tuple(shape), lambda: np.zeros(shape, DTYPES[dtype]), source
    )


def float32(tensor: Tensor) -> Tensor:
    """The same numbers in float32; exact for float16 and bfloat16."""

    def read():
        numbers = tensor.read()
        if tensor.dtype == "BF16":
            return (numbers.astype("<u4") << np.uint32(16)).view("<f4")
        return numbers.astype("<f4", copy=False)

    return tensor._replace(dtype="F32", read=read)


def is_finite(tensor: Tensor, numbers: np.ndarray) -> bool:
    """Whether the numbers of a tensor have no NaN and no infinity."""
    if tensor.dtype == "BF16":  # in an exponent all bits are 1
        return not (numbers & 0x7F80 == 0x7F80).any()
    return bool(np.isfinite(numbers).all())


def same_bytes(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits."""
    return first[:2] == second[:2] and np.array_equal(
        raw_bytes(first), raw_bytes(second)
    )


def raw_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor in C order, uint8 [n]."""
    return np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
