# SPDX-License-Identifier: Apache-2.0
"""tf.train.Example messages, without TensorFlow or protobuf.

The functions for numbers and fields also serve other protocol buffers.

An example is a map from a name to a list of integers, floats or bytes.

Source: tensorflow/core/example/{example,feature}.proto, and protobuf's
"Encoding" page for the wire format.
"""

import typing

import numpy as np

from common import errors

# The longest record that is read or written. Ours take some kilobytes; a limit
# bounds time and memory when a file is hostile.
MAX_RECORD_BYTES = 1 << 20

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


class RecordError(errors.UserError):
    """A record is truncated, corrupted or not a training example."""


def encode_varint(value: int) -> bytes:
    """The bytes of one number >= 0 in base 128."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _varint_digits(values):
    """[N] int64 numbers in base 128, the lowest digit first.

    Returns:
      (digits [N, width] uint8, used [N, width] bool): the bytes of a number are
      its used digits; negative numbers have ten.
    """
    rest = values.astype(np.int64).view(np.uint64)
    columns, used = [], [np.ones(rest.shape, bool)]
    while True:
        low = (rest & np.uint64(0x7F)).astype(np.uint8)
        rest = rest >> np.uint64(7)
        more = rest != 0
        columns.append(low | more.astype(np.uint8) << np.uint8(7))
        if not more.any():
            return np.stack(columns, 1), np.stack(used, 1)
        used.append(more)


def _delimited(tag, data):
    return b"".join([tag, encode_varint(len(data)), data])


def encode_examples(
    features: typing.Mapping[
        str, typing.Tuple[np.ndarray, typing.Sequence[int]]
    ],
) -> typing.List[bytes]:
    """The bytes of many tf.train.Examples at once.

    They equal tf.train.Example(...).SerializeToString(deterministic=True).

    Args:
      features: {name: (values, bounds)}: row i of B has the values
        values[bounds[i]:bounds[i + 1]]; values are 1-D integers, which become
        an Int64List, or float32, a FloatList; bounds [B + 1] integers.

    Returns:
      B serialized examples.

    Example: {"a": (np.array([300, 7]), [0, 1, 2])} -> the examples of
      {"a": [300]} and {"a": [7]}.
    """
    columns = [
        _encode_column(name, *features[name]) for name in sorted(features)
    ]
    return [_delimited(b"\n", b"".join(row)) for row in zip(*columns)]


def _encode_column(name, values, bounds):
    """The entry of one feature in each of B rows, a list of bytes."""
    if values.dtype == np.float32:
        tag, data = b"\x12", values.astype("<f4").tobytes()
        bounds = np.asarray(bounds) * 4
    else:
        digits, used = _varint_digits(values)
        tag, data = b"\x1a", digits[used].tobytes()
        ends = np.append(0, np.cumsum(used.sum(axis=1)))
        bounds = ends[bounds]
    key = _delimited(b"\n", name.encode("utf-8"))
    heads, entries = {}, []
    bounds = bounds.tolist()
    for start, end in zip(bounds, bounds[1:]):
        size = end - start
        if size not in heads:
            heads[size] = _entry_head(key, tag, size)
        entries.append(heads[size] + data[start:end])
    return entries


def _entry_head(key, tag, size):
    """The bytes before the `size` bytes of numbers in an entry."""
    head = b"\n" + encode_varint(size) if size else b""
    for before in tag, key + b"\x12", b"\n":
        head = before + encode_varint(len(head) + size) + head
    return head


def read_varint(
    data: bytes, position: int, end: typing.Optional[int] = None
) -> typing.Tuple[int, int]:
    """(value below 2**64, position after it), from data[position:end].

    Raises:
      RecordError: the number is cut off or too long.
    """
    end = len(data) if end is None else end
    result = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise RecordError("a number is cut off")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, position
    raise RecordError("a number is longer than ten bytes")


def read_fields(
    data: bytes, position: int, end: int
) -> typing.Iterator[typing.Tuple[int, int, int, int]]:
    """Yields (number, wire type, value or start, end) of a message's fields.

    Raises:
      RecordError: a field is cut off, or its number or type is unknown.
    """
    while position < end:
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = read_varint(data, position, end)
        wire, number = tag & 7, tag >> 3
        if not 0 < number < 1 << 29:
            raise RecordError(f"field number {number} is not possible")
        if wire == VARINT:
            value, position = read_varint(data, position, end)
            yield number, wire, value, position
            continue
        if wire == DELIMITED:
            size, position = read_varint(data, position, end)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise RecordError(f"wire type {wire} is not supported")
        if size > end - position:
            raise RecordError(f"a field of {size} bytes is cut off")
        yield number, wire, position, position + size
        position += size


def _decode_varints(digits):
    """[N] int64 from the uint8 digits of numbers in base 128."""
    ends = (digits < 0x80).nonzero()[0]
    if len(ends) == len(digits):
        return digits.astype(np.int64)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise RecordError("a number is cut off")
    starts = np.zeros_like(ends)
    np.add(ends[:-1], 1, out=starts[1:])
    widths = ends - starts
    longest = int(widths.max())
    if longest > 9:
        raise RecordError("a number is longer than ten bytes")
    low = (digits & np.uint8(0x7F)).astype(np.uint64)
    values = low.take(starts)
    for digit in range(1, longest + 1):
        part = low.take(starts + digit, mode="clip")
        part *= widths >= digit
        part <<= np.uint64(7 * digit)
        values |= part
    return values.view(np.int64)


def _decode_ints(data, position, end):
    parts = []
    for number, wire, start, stop in read_fields(data, position, end):
        if number != 1:
            continue
        if wire == VARINT:
            parts.append(np.array([start], np.uint64).view(np.int64))
        elif wire == DELIMITED:
            digits = np.frombuffer(data, np.uint8, stop - start, start)
            parts.append(_decode_varints(digits))
        else:
            raise RecordError(f"an integer has wire type {wire}")
    return _joined(parts, np.int64)


def _decode_floats(data, position, end):
    values = bytearray()
    for number, wire, start, stop in read_fields(data, position, end):
        if number != 1:
            continue
        if wire not in (FIXED32, DELIMITED) or (stop - start) % 4:
            raise RecordError(
                f"a float list has wire type {wire} and {stop - start} bytes"
            )
        values += data[start:stop]
    return np.frombuffer(bytes(values), "<f4").astype(np.float32)


def _decode_bytes(data, position, end):
    values = [
        data[start:stop]
        for number, wire, start, stop in read_fields(data, position, end)
        if number == 1 and wire == DELIMITED
    ]
    result = np.empty(len(values), object)
    result[:] = values
    return result


def _joined(parts, dtype):
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


_LISTS = {1: _decode_bytes, 2: _decode_floats, 3: _decode_ints}


def _decode_feature(data, position, end):
    """The array of a Feature, None when it holds no list.

    Lists of one kind that come in pieces are joined, another kind replaces
    what came before, as protobuf merges a `oneof`.
    """
    kind, parts = None, []
    for number, wire, start, stop in read_fields(data, position, end):
        if number not in _LISTS or wire != DELIMITED:
            continue
        if number != kind:
            kind, parts = number, []
        parts.append(_LISTS[number](data, start, stop))
    return _joined(parts, None) if parts else None


def _decode_entry(data, position, end):
    """(name, array or None) of one entry of the feature map."""
    name, values = "", None
    for number, wire, start, stop in read_fields(data, position, end):
        if wire != DELIMITED:
            continue
        if number == 1:
            try:
                name = data[start:stop].decode("utf-8")
            except UnicodeDecodeError:
                raise RecordError("a feature's name is not UTF-8") from None
        elif number == 2:
            values = _decode_feature(data, start, stop)
    return name, values


def decode_example(data: bytes) -> typing.Dict[str, np.ndarray]:
    """The features of a serialized tf.train.Example.

    Fields in any order, unknown fields, and lists that are not packed are
    read as TensorFlow reads them.

    Args:
      data: bytes.

    Returns:
      {name: [N] np.int64 or np.float32, or object for a list of bytes}; a
      feature without a list is omitted.

    Raises:
      RecordError: the bytes are not a tf.train.Example.

    Example: the inverse of that of `encode_examples`, for one record.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(
            f"{len(data)} bytes are more than the limit of {MAX_RECORD_BYTES}"
        )
    features: typing.Dict[str, np.ndarray] = {}
    for number, wire, start, stop in read_fields(data, 0, len(data)):
        if number != 1 or wire != DELIMITED:
            continue
        for inner, kind, first, last in read_fields(data, start, stop):
            if inner != 1 or kind != DELIMITED:
                continue
            name, values = _decode_entry(data, first, last)
            features.pop(name, None)
            if values is not None:
                features[name] = values
    return features
