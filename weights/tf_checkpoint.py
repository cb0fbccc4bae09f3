# SPDX-License-Identifier: Apache-2.0
"""TensorFlow checkpoints (format V2), one variable at a time, checked.

PREFIX.index is a sorted table: variable name -> type, shape, place, checksum.
PREFIX.data-00000-of-00001 holds the variables' bytes, end to end.

TensorFlow writes a checkpoint from variables that are all in memory, and its
reader trusts the index: before 2.7 a damaged one crashes the process instead of
raising (CVE-2021-41203). This module needs one variable at a time and refuses
what does not add up.

Source: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/util/
tensor_bundle/tensor_bundle.h, tensorflow/core/lib/io/format.cc.
"""

import os
import struct

import numpy as np

from common import errors, files, tf_example, tfrecord
from common.tf_example import encode_varint, read_varint
from weights import lazy_tensors

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression type, checksum
_BLOCK_BYTES = 1 << 16
_MAX_INDEX_BYTES = 64 << 20

# TensorFlow's DataType numbers.
_NUMBERS = {
    "F32": 1,
    "F64": 2,
    "I32": 3,
    "U8": 4,
    "I16": 5,
    "I8": 6,
    "I64": 9,
    "BOOL": 10,
    "BF16": 14,
    "U16": 17,
    "F16": 19,
    "U32": 22,
    "U64": 23,
}
_DTYPES = {number: dtype for dtype, number in _NUMBERS.items()}
_STRING = 7


def data_file(prefix, shard=0, shards=1):
    """The name of a file with variables' bytes."""
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


def index_file(prefix):
    """The name of the file without which there is no checkpoint."""
    return prefix + ".index"


def _damaged(path, what):
    return errors.UserError(
        f"{path} is no whole TensorFlow checkpoint: {what}; take another "
        "checkpoint or copy it again"
    )


# Numbers and messages: protocol buffers, as far as an index needs them.


def _field(number, value):
    """A field of a message: an int as varint, bytes as a message."""
    if isinstance(value, bytes):
        return (
            encode_varint(number << 3 | 2) + encode_varint(len(value)) + value
        )
    return encode_varint(number << 3) + encode_varint(value)


def _message(data):
    """{field number: [value, ...]}; bytes for messages, else an int."""
    values = {}
    for number, wire, start, stop in tf_example.read_fields(data, 0, len(data)):
        value = start
        if wire == tf_example.DELIMITED:
            value = data[start:stop]
        elif wire != tf_example.VARINT:
            value = int.from_bytes(data[start:stop], "little")
        values.setdefault(number, []).append(value)
    return values


# The table: blocks of sorted keys, then a block that lists the blocks.


def _block(entries):
    """The bytes of a block: every key in full, each a point to search from."""
    body, starts = bytearray(), []
    for key, value in entries:
        starts.append(len(body))
        body += (
            b"\0"
            + encode_varint(len(key))
            + encode_varint(len(value))
            + key
            + value
        )
    starts = starts or [0]
    return bytes(body) + struct.pack(
        f"<{len(starts) + 1}I", *(starts + [len(starts)])
    )


def _table(entries):
    """The bytes of a table of sorted (key, value) pairs."""
    result, handles = bytearray(), []

    def add(pairs):
        block = _block(pairs)
        handle = encode_varint(len(result)) + encode_varint(len(block))
        result.extend(
            block
            + b"\0"
            + struct.pack("<I", tfrecord.masked_crc32c(block + b"\0"))
        )
        return handle

    pending, size = [], 0
    for key, value in entries:
        pending.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_BYTES:
            handles.append((key, add(pending)))
            pending, size = [], 0
    if pending:
        handles.append((pending[-1][0], add(pending)))
    footer = add([]) + add(handles)
    return (
        bytes(result)
        + footer.ljust(_FOOTER_BYTES - 8, b"\0")
        + struct.pack("<Q", _MAGIC)
    )


def _read_block(data, offset, size):
    """The (key, value) pairs of a block."""
    end = offset + size
    if end + _TRAILER_BYTES > len(data):
        raise ValueError("a block lies outside the file")
    kind, crc = struct.unpack_from("<BI", data, end)
    if crc != tfrecord.masked_crc32c(data[offset : end + 1]):
        raise ValueError("the checksum of a block does not match")
    if kind:
        raise ValueError("a block is compressed, which TensorFlow does not do")
    (starts,) = struct.unpack_from("<I", data, end - 4)
    end -= 4 * (starts + 1)
    if end < offset:
        raise ValueError("a block is cut off")
    pairs, key, position = [], b"", offset
    while position < end:
        shared, position = read_varint(data, position)
        added, position = read_varint(data, position)
        value_size, position = read_varint(data, position)
        if shared > len(key) or position + added + value_size > end:
            raise ValueError("a key is cut off")
        key = key[:shared] + data[position : position + added]
        position += added
        pairs.append((key, data[position : position + value_size]))
        position += value_size
    return pairs


def _read_table(data):
    """The (key, value) pairs of a table."""
    if (
        len(data) < _FOOTER_BYTES
        or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC
    ):
        raise ValueError("it does not end as an index of format V2 does")
    position = len(data) - _FOOTER_BYTES
    for _ in range(2):  # the block of meta data, which is empty
        _, position = read_varint(data, position)
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    pairs, end = [], 0
    for _, handle in _read_block(data, offset, size):
        offset, position = read_varint(handle, 0)
        size, _ = read_varint(handle, position)
        if offset < end:
            raise ValueError("its blocks overlap")
        end = offset + size
        pairs += _read_block(data, offset, size)
    for (before, _), (key, _) in zip(pairs, pairs[1:]):
        if before >= key:
            raise ValueError("its keys are not sorted")
    return pairs


def write_data(stream, tensors, written=None):
    """Writes the bytes of a checkpoint's data file.

    Args:
      stream: binary, at its start.
      tensors: {name: weights.Tensor}.
      written: called with (name, tensor) after each.

    Returns:
      The bytes of the index file.
    """
    entries, offset = [], 0
    for name in sorted(tensors, key=lambda name: name.encode("utf-8")):
        tensor = tensors[name]
        data = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
        stream.write(data)
        entries.append(
            (
                name.encode("utf-8"),
                b"".join(
                    [
                        _field(1, _NUMBERS[tensor.dtype]),
                        _field(
                            2,
                            b"".join(
                                _field(2, _field(1, size))
                                for size in tensor.shape
                            ),
                        ),
                        _field(4, offset),
                        _field(5, len(data)),
                        encode_varint(6 << 3 | 5),
                        struct.pack("<I", tfrecord.masked_crc32c(data)),
                    ]
                ),
            )
        )
        offset += len(data)
        if written is not None:
            written(name, tensor)
    # One file, little endian, version 1.
    header = _field(1, 1) + _field(3, _field(1, 1))
    return _table([(b"", header)] + entries)


def load(prefix):
    """The variables of a checkpoint, not yet read.

    Reading one compares its checksum.

    Returns:
      {name: weights.Tensor}, in the order of the names. A variable of texts has
      the type "STRING" and cannot be read.

    Raises:
      errors.UserError: the index is damaged, or a file is shorter than it says.
      OSError: a file is missing.
    """
    path = index_file(prefix)
    try:
        pairs = _read_table(files.read_bytes(path, _MAX_INDEX_BYTES))
        if not pairs or pairs[0][0]:
            raise ValueError("it has no header")
        header = _message(pairs[0][1])
        shards = header.get(1, [0])[0]
        if header.get(2, [0])[0] or not 0 < shards < 10**5:
            raise ValueError(
                "it was written on a big-endian machine, or its "
                "number of files is wrong"
            )
        sizes = {}
        return {
            key.decode("utf-8"): _variable(
                prefix, key.decode("utf-8"), _message(value), shards, sizes
            )
            for key, value in pairs[1:]
            if not key.startswith(b"\0")
        }  # the slices of another entry
    except tf_example.RecordError as error:
        raise _damaged(path, error) from error
    except errors.UserError:
        raise
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise _damaged(path, error) from error


def _variable(prefix, name, entry, shards, sizes):
    """The Tensor of an entry of the index.

    Args:
      sizes: {data file: its size}, filled here.
    """

    def number(field):
        value = entry.get(field, [0])[0]
        if not isinstance(value, int):
            raise ValueError("a field has a type that is not expected")
        return value

    if 7 in entry:
        raise errors.UserError(
            f"{prefix}: {lazy_tensors.quoted(name)} is stored in slices; save "
            "it as one variable"
        )
    shape = tuple(
        _message(dimension).get(1, [0])[0]
        for dimension in _message(entry.get(2, [b""])[0]).get(2, [])
    )
    if number(1) == _STRING:
        return lazy_tensors.Tensor("STRING", shape, None, name)
    dtype = _DTYPES.get(number(1))
    if dtype is None:
        raise ValueError(
            f"the type {number(1)} of {lazy_tensors.quoted(name)} is not known"
        )
    if len(shape) > 8 or not all(
        isinstance(size, int) and size < 1 << 48 for size in shape
    ):
        raise ValueError(
            f"the shape of {lazy_tensors.quoted(name)} is not possible"
        )
    kind, offset, size, crc = (
        lazy_tensors.DTYPES[dtype],
        number(4),
        number(5),
        number(6),
    )
    if size != lazy_tensors.count(shape) * kind.itemsize or number(3) >= shards:
        raise ValueError(
            f"size or file of {lazy_tensors.quoted(name)} are not possible"
        )
    path = data_file(prefix, number(3), shards)
    if path not in sizes:
        sizes[path] = os.path.getsize(path)
    if offset + size > sizes[path]:
        raise _damaged(
            path,
            f"it has {sizes[path]} bytes, but {lazy_tensors.quoted(name)} ends "
            f"at {offset + size}",
        )

    def read():
        data = files.read_exactly(path, offset, size)
        if tfrecord.masked_crc32c(data) != crc:
            raise _damaged(
                path,
                f"the checksum of {lazy_tensors.quoted(name)} does not match",
            )
        return np.frombuffer(data, kind).reshape(shape)

    return lazy_tensors.Tensor(dtype, shape, read, name)
