# SPDX-License-Identifier: Apache-2.0
"""Tensors of a model as they lie in a file, and files that appear when whole.

A `Tensor` says what it is without having been read, so that names and shapes
are checked before the first byte is moved, and one tensor at a time is in
memory. Views (transposed, a part of its rows, its rows in another order) are
Tensors too.
"""
import os
import typing

import numpy as np

import errors
import strict_json

# safetensors' names of the types; bfloat16 travels as its 16 bits.
DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"), "I64": np.dtype("<i8"), "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"), "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1")}

MAX_JSON_BYTES = 16 << 20


class Tensor(typing.NamedTuple):
    """A tensor that is read when asked for."""
    dtype: str  # a key of DTYPES
    shape: typing.Tuple[int, ...]
    read: typing.Callable  # () -> array of that shape and DTYPES[dtype]
    source: str  # what its file calls it

    def __str__(self):
        return "%s %s %s" % (self.source, self.dtype, shape_text(self.shape))


def shape_text(shape):
    """`[2, 3]`, with `*` for a free dimension (None)."""
    return "[%s]" % ", ".join("*" if size is None else str(size)
                              for size in shape)


def quoted(name):
    """A name from a file as it may stand in a message."""
    return repr(name if len(name) <= 100 else name[:97] + "...")


def count(shape):
    """Elements of a shape, an unbounded int."""
    product = 1
    for size in shape:
        product *= size
    return product


def transposed(tensor):
    """[M, N] -> [N, M]."""
    return tensor._replace(shape=tensor.shape[::-1],
                           read=lambda: tensor.read().T)


def rows(tensor, start, stop):
    """[N, ...] -> [stop - start, ...]."""
    return tensor._replace(
        shape=(stop - start,) + tensor.shape[1:],
        read=lambda: tensor.read()[start:stop],
        source="%s[%d:%d]" % (tensor.source, start, stop))


def reordered(tensor, order):
    """Row i of the result is row order[i] of the tensor."""
    return tensor._replace(read=lambda: tensor.read()[order])


def zeros(dtype, shape, source):
    """A tensor that no file holds."""
    return Tensor(dtype, tuple(shape),
                  lambda: np.zeros(shape, DTYPES[dtype]), source)


def float32(tensor):
    """The same numbers in float32; exact for float16 and bfloat16."""
    if tensor.dtype == "F32":
        return tensor
    if tensor.dtype == "F16":
        return tensor._replace(
            dtype="F32", read=lambda: tensor.read().astype("<f4"))

    def widened():
        bits = tensor.read().astype("<u4") << np.uint32(16)
        return bits.view("<f4")
    return tensor._replace(dtype="F32", read=widened)


def same_bytes(first, second):
    """Whether two tensors hold the same type, shape and bits."""
    if first[:2] != second[:2]:
        return False
    return bool(np.array_equal(*(
        np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
        for tensor in (first, second))))


def read_exactly(path, offset, size):
    """Bytes of a file, a UserError where it ends too early."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise errors.UserError(
            "%s is cut off: %d bytes at %d were expected, %d are there; copy "
            "the file again" % (path, size, offset, len(data)))
    return data


def parse_json(data, path):
    """The object of a JSON text whose keys are all different.

    Raises:
      errors.UserError: no JSON, no object, a key twice, or strict_json's
        limits.
    """
    try:
        values = strict_json.loads(data.decode("utf-8-sig"),
                                   object_pairs_hook=strict_json.unique)
    except ValueError as error:
        raise errors.UserError("%s is not the JSON that was expected: %s; copy "
                               "the file again" % (path, error))
    if not isinstance(values, dict):
        raise errors.UserError("%s holds a JSON %s; expected an object" %
                               (path, type(values).__name__))
    return values


def read_small(path, limit=MAX_JSON_BYTES):
    """A whole file of at most `limit` bytes."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise errors.UserError("%s has %d bytes, the limit for such a file "
                                   "is %d; is it the right one?" %
                                   (path, size, limit))
        return stream.read(size)


def read_json(path):
    """The object of a JSON file."""
    return parse_json(read_small(path), path)


def read_vocabulary(path, vocab_size):
    """{token: id} of a vocab.json that goes with so many embeddings.

    Raises:
      errors.UserError: an id is no number, stands there twice, or has no row.
    """
    ids = read_json(path)
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < vocab_size:
            raise errors.UserError(
                "%s gives %s the id %.40r, but the model has %d embeddings; "
                "take the vocabulary that belongs to it" %
                (path, quoted(token), number, vocab_size))
    if len(set(ids.values())) != len(ids):
        raise errors.UserError("%s gives two tokens the same id; take the "
                               "vocabulary that belongs to the model" % path)
    return ids


class NewFiles:
    """Files that get their names together, once all of them are whole.

        with NewFiles([data_file, index_file], overwrite=False) as files:
            with files.open(data_file) as stream:
                ...

    Until then each is called path + ".incomplete". The last path is the one
    without which the others are not used: it is renamed last, and an old one
    is removed first, so that no moment shows a mixture.

    Raises:
      errors.UserError: a path exists and is not to be overwritten.
      OSError: names the file, also for a full disk.
    """

    def __init__(self, paths, *, overwrite):
        self._paths = list(paths)
        self._made = []
        for path in self._paths:
            if os.path.lexists(path) and not overwrite:
                raise errors.UserError("%s exists already; pass --overwrite to "
                                       "replace it or choose another --output" %
                                       path)
            if os.path.isdir(path):
                raise errors.UserError("%s is a directory; choose another "
                                       "--output" % path)

    def __enter__(self):
        for directory in {os.path.dirname(os.path.abspath(path))
                          for path in self._paths}:
            self._make(directory)
        return self

    def _make(self, directory):
        if os.path.isdir(directory):
            return
        self._make(os.path.dirname(directory))
        os.mkdir(directory)
        self._made.append(directory)

    def open(self, path):
        """A binary stream for one of the paths."""
        if path not in self._paths:
            raise KeyError(path)
        return open(path + ".incomplete", "wb")

    def write(self, path, data):
        """All bytes of one of the paths."""
        with self.open(path) as stream:
            stream.write(data)

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self._publish()
            elif isinstance(error, OSError) and error.filename is None:
                error.filename = self._paths[-1]
        finally:
            self._clean_up()

    def _publish(self):
        for path in self._paths:
            with open(path + ".incomplete", "rb+") as stream:
                os.fsync(stream.fileno())
        if os.path.lexists(self._paths[-1]):
            os.remove(self._paths[-1])
        for path in self._paths:
            os.replace(path + ".incomplete", path)
        for directory in {os.path.dirname(os.path.abspath(path))
                          for path in self._paths}:
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def _clean_up(self):
        for path in self._paths:
            if os.path.lexists(path + ".incomplete"):
                os.remove(path + ".incomplete")
        for directory in reversed(self._made):
            if not os.listdir(directory):
                os.rmdir(directory)
