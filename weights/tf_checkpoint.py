# SPDX-License-Identifier: Apache-2.0
"""Reads and writes TensorFlow checkpoints (format V2), a variable at a time.

PREFIX.index is a sorted table: variable name -> type, shape, place, checksum.
PREFIX.data-00000-of-00001 contains the variables' bytes, end to end.

TensorFlow writes a checkpoint from variables that are all in memory, and its
reader trusts the index: before 2.7 a damaged one crashes the process instead of
raising (CVE-2021-41203). This module checks the index.

Source: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/util/
tensor_bundle/tensor_bundle.h, tensorflow/core/lib/io/format.cc.
"""

import os
import re
import struct
import typing

from common import errors, files, tf_example, tfrecord
from common.tf_example import encode_varint, read_varint
from weights import lazy_tensors

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression type, checksum
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
_DTYPES[7] = "STRING"


def data_file(prefix: str, shard: int = 0, shards: int = 1) -> str:
    """The name of a file with variables' bytes."""
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


def index_file(prefix: str) -> str:
    """The name of the file without which there is no checkpoint."""
    return prefix + ".index"


def in_directory(path: str) -> typing.List[str]:
    """The prefixes of all checkpoints in a directory, by step."""
    indexes = files.matching(path, "*.index")
    return sorted((name[: -len(".index")] for name in indexes), key=step_of)


def step_of(prefix: str) -> int:
    """The step in the name of a checkpoint, -1 without one."""
    match = re.search(r"-(\d+)$", prefix)
    return int(match.group(1)) if match else -1


def _damaged(path, problem):
    return errors.UserError(
        f"{path}: not a complete TensorFlow checkpoint: {problem}; use another "
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
    """The bytes of a block: each key in full, all of them restart points."""
    body, starts = bytearray(), []
    for key, value in entries:
        starts.append(len(body))
        sizes = encode_varint(len(key)) + encode_varint(len(value))
        body += b"\0" + sizes + key + value
    starts = starts or [0]
    body += struct.pack(f"<{len(starts)}I", *starts)
    return bytes(body) + struct.pack("<I", len(starts))


def _table(entries):
    """The bytes of a table of sorted (key, value) pairs, in one block."""
    table = bytearray()

    def add(pairs):
        block = _block(pairs)
        handle = encode_varint(len(table)) + encode_varint(len(block))
        table.extend(block + b"\0")
        table.extend(struct.pack("<I", tfrecord.masked_crc32c(block + b"\0")))
        return handle

    data_handle = add(entries)
    footer = add([]) + add([(entries[-1][0], data_handle)])
    table += footer.ljust(_FOOTER_BYTES - 8, b"\0")
    return bytes(table) + struct.pack("<Q", _MAGIC)


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


def write_data(
    stream: typing.BinaryIO,
    tensors: typing.Dict[str, lazy_tensors.Tensor],
    written: typing.Callable[[str], None] = lambda name: None,
) -> bytes:
    """Writes the content of a checkpoint's data file.

    Args:
      stream: binary, at its start.
      tensors: by the name of the variable.
      written: called with the name of each variable after it.

    Returns:
      The content of the index file.
    """
    # One file, little endian, version 1.
    entries = [(b"", _field(1, 1) + _field(3, _field(1, 1)))]
    offset = 0
    for name in sorted(tensors, key=str.encode):
        data = lazy_tensors.raw_bytes(tensors[name])
        stream.write(data.data)
        entry = _entry(tensors[name], offset, tfrecord.masked_crc32c(data))
        entries.append((name.encode(), entry))
        offset += len(data)
        written(name)
    return _table(entries)


def _entry(tensor, offset, crc):
    """A BundleEntryProto; zeros are written too."""
    shape = b"".join(_field(2, _field(1, size)) for size in tensor.shape)
    return (
        _field(1, _NUMBERS[tensor.dtype])
        + _field(2, shape)
        + _field(4, offset)
        + _field(5, tensor.nbytes)
        + encode_varint(6 << 3 | 5)
        + struct.pack("<I", crc)
    )


def load(prefix: str) -> typing.Dict[str, lazy_tensors.Tensor]:
    """The variables of a checkpoint by name, not yet read.

    Reading one compares its checksum. A variable of strings has the type
    "STRING" and cannot be read.

    Raises:
      errors.UserError: the index is damaged, or a file is shorter than it says.
      OSError: a file is missing.
    """
    path = index_file(prefix)
    files.check_regular(path)
    data = files.read_bytes(path, _MAX_INDEX_BYTES)
    try:
        pairs = _read_table(data)
        if not pairs or pairs[0][0]:
            raise ValueError("it has no header")
        header = _message(pairs[0][1])
        shards = _number(header, 1)
        if _number(header, 2) or not 0 < shards < 10**5:
            raise ValueError(
                "it was written on a big-endian machine, or its number of "
                "files is wrong"
            )
        return {
            key.decode("utf-8"): _variable(
                prefix, key.decode("utf-8"), _message(value), shards
            )
            for key, value in pairs[1:]
            if not key.startswith(b"\0")  # the slices of another entry
        }
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise _damaged(path, error) from error


def _number(message, field):
    value = message.get(field, [0])[0]
    if not isinstance(value, int):
        raise ValueError("a field has a type that is not expected")
    return value


def _variable(prefix, name, entry, shards):
    """The Tensor of an entry of the index."""
    quoted = lazy_tensors.quoted(name)
    if 7 in entry:
        raise ValueError(
            f"{quoted} is stored in slices; save it as one variable"
        )
    dtype = _DTYPES.get(_number(entry, 1))
    if dtype is None:
        raise ValueError(
            f"the type {_number(entry, 1)} of {quoted} is not known"
        )
    dimensions = _message(entry.get(2, [b""])[0]).get(2, [])
    shape = tuple(_number(_message(size), 1) for size in dimensions)
    if not lazy_tensors.is_shape(shape):
        raise ValueError(f"the shape of {quoted} is not possible")
    if dtype == "STRING":
        return lazy_tensors.Tensor(dtype, shape, None, name)
    shard, offset, size, crc = (_number(entry, field) for field in (3, 4, 5, 6))
    path = data_file(prefix, shard, shards)
    tensor = lazy_tensors.stored(path, offset, dtype, shape, name)
    if size != tensor.nbytes or shard >= shards:
        raise ValueError(f"size or file of {quoted} are not possible")
    if offset + size > os.path.getsize(path):
        raise ValueError(
            f"{path} has {os.path.getsize(path)} bytes, but {quoted} ends at "
            f"{offset + size}"
        )

    def read():
        array = tensor.read()
        if tfrecord.masked_crc32c(array) != crc:
            raise _damaged(path, f"the checksum of {quoted} does not match")
        return array

    return tensor._replace(read=read)
