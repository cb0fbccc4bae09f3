# SPDX-License-Identifier: Apache-2.0
"""TFRecord files and tf.train.Example messages, without TensorFlow.

A file is a chain of frames: length (uint64), masked CRC32C of the length
(uint32), the data, masked CRC32C of the data (uint32), all little endian.
The data is a tf.train.Example: a map from a name to a list of numbers.

Source: tensorflow/core/lib/io/record_writer.h (frames),
tensorflow/core/example/{example,feature}.proto (messages), RFC 3720 appendix
B.4 (CRC32C test vectors).
"""
import array
import functools
import hashlib
import os
import struct

import numpy as np

import errors

# The longest record that is read or written. Ours take some kilobytes; a limit
# bounds time and memory when a file is hostile.
MAX_RECORD_BYTES = 1 << 20

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
FRAME_BYTES = HEADER.size + FOOTER.size

_CRC_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
_CRC_BLOCK = 2048
_INDEX_BYTES = 1 << 20

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class RecordError(errors.UserError):
    """A record is truncated, corrupted or no training example."""


@functools.lru_cache(maxsize=None)
def _crc_table():
    """[_CRC_BLOCK, 256] uint32: what a byte adds, by its distance to the end.

    CRC is linear over XOR: the checksum of a block is the XOR of what each of
    its bytes contributes, and a byte further from the end passes through that
    many more steps.
    """
    table = np.zeros([_CRC_BLOCK, 256], np.uint32)
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = (row >> np.uint32(1)) ^ (row & np.uint32(1)) * np.uint32(
            _CRC_POLYNOMIAL)
    table[0] = row
    for distance in range(1, 4):
        table[distance] = _step(table, table[distance - 1])
    filled = 4
    while filled < _CRC_BLOCK:
        table[filled:2 * filled] = _advance(table, table[:filled], filled)
        filled *= 2
    return table


def _step(table, state):
    """The states one zero byte later."""
    return (state >> np.uint32(8)) ^ table[0][state & np.uint32(255)]


def _advance(table, state, distance):
    """The states `distance` >= 4 zero bytes later."""
    result = table[distance - 1][state & np.uint32(255)]
    for byte in range(1, 4):
        result = result ^ table[distance - 1 - byte][
            (state >> np.uint32(8 * byte)) & np.uint32(255)]
    return result


@functools.lru_cache(maxsize=None)
def _crc_offsets():
    """[_CRC_BLOCK] int64: where the row of each byte of a full block starts."""
    return np.arange(_CRC_BLOCK - 1, -1, -1, dtype=np.int64) * 256


def crc32c(data):
    """The CRC32C of bytes, an int of 32 bits.

    Example: crc32c(b"123456789") == 0xE3069283
    """
    table, offsets = _crc_table().reshape(-1), _crc_offsets()
    values = np.frombuffer(data, np.uint8)
    state = 0xFFFFFFFF
    for start in range(0, len(values), _CRC_BLOCK):
        block = values[start:start + _CRC_BLOCK]
        # The state so far enters as if it had been XORed into the next bytes;
        # what a block shorter than the state leaves over is shifted out.
        rest = 0
        head = np.frombuffer(struct.pack("<I", state), np.uint8)
        taken = min(4, len(block))
        index = offsets[_CRC_BLOCK - len(block):] + block
        index[:taken] ^= head[:taken]
        if taken < 4:
            rest = state >> (8 * taken)
        state = int(np.bitwise_xor.reduce(table.take(index))) ^ rest
    return state ^ 0xFFFFFFFF


def masked_crc32c(data):
    """CRC32C as frames store it: rotated, so that a CRC of a CRC is safe."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.lru_cache(maxsize=1 << 14)
def length_crc(length):
    """The masked CRC32C of a frame's length field."""
    return masked_crc32c(struct.pack("<Q", length))


def frame(data):
    """The frame of one record: bytes in, bytes out."""
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(
            "a record of %d bytes is longer than the limit of %d; use a "
            "smaller --max_seq_length" % (len(data), MAX_RECORD_BYTES))
    return b"".join([HEADER.pack(len(data), length_crc(len(data))), data,
                     FOOTER.pack(masked_crc32c(data))])


def _varint(value):
    """The bytes of one number >= 0 in base 128."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _encode_varints(values):
    """The bytes of [N] int64 numbers in base 128; negative ones take ten."""
    rest = values.astype(np.int64).view(np.uint64)
    if not rest.size:
        return b""
    columns = []
    while True:
        low = (rest & np.uint64(0x7F)).astype(np.uint8)
        rest = rest >> np.uint64(7)
        more = rest != 0
        columns.append((low | more.astype(np.uint8) << np.uint8(7), more))
        if not more.any():
            break
    if len(columns) == 1:
        return columns[0][0].tobytes()
    digits = np.stack([digit for digit, _ in columns], 1)  # [N, width]
    used = np.ones(digits.shape, bool)
    for column, (_, more) in enumerate(columns[:-1]):
        used[:, column + 1] = more
    return digits[used].tobytes()


def _delimited(tag, data):
    return b"".join([tag, _varint(len(data)), data])


def encode_example(features):
    """The bytes of a tf.train.Example.

    They equal tf.train.Example(...).SerializeToString(deterministic=True).

    Args:
      features: {name: 1-D array}; integers become an Int64List, float32 a
        FloatList.

    Raises:
      TypeError: an array is neither 1-D integers nor 1-D float32.

    Example:
      {"a": np.array([300])} -> b'\\n\\r\\n\\x0b\\n\\x01a\\x12\\x06\\x1a\\x04
      \\n\\x02\\xac\\x02' (one line).
    """
    entries = []
    for name in sorted(features):
        values = np.asarray(features[name])
        if values.ndim != 1 or not (values.dtype.kind in "iu"
                                    or values.dtype == np.float32):
            raise TypeError("feature %r is %s %s; 1-D integers or float32 are "
                            "expected" % (name, values.dtype, values.shape))
        if values.dtype == np.float32:
            tag, payload = b"\x12", values.astype("<f4").tobytes()
        else:
            tag, payload = b"\x1a", _encode_varints(values)
        payload = _delimited(b"\n", payload) if payload else b""
        feature = _delimited(tag, payload)
        entry = (_delimited(b"\n", name.encode("utf-8"))
                 + _delimited(b"\x12", feature))
        entries.append(_delimited(b"\n", entry))
    return _delimited(b"\n", b"".join(entries))


def _read_varint(data, position, end):
    """(value below 2**64, position behind it)."""
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


def _fields(data, position, end):
    """Yields (number, wire type, value or start, end) of a message's fields."""
    while position < end:
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _read_varint(data, position, end)
        wire, number = tag & 7, tag >> 3
        if not 0 < number < 1 << 29:
            raise RecordError("field number %d is not possible" % number)
        if wire == _VARINT:
            value, position = _read_varint(data, position, end)
            yield number, wire, value, position
            continue
        if wire == _DELIMITED:
            size, position = _read_varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise RecordError("wire type %d is not supported" % wire)
        if size > end - position:
            raise RecordError("a field of %d bytes is cut off" % size)
        yield number, wire, position, position + size
        position += size


def _decode_varints(digits):
    """[N] int64 from the uint8 digits of numbers in base 128."""
    is_last = digits < 0x80
    if is_last.all():
        return digits.astype(np.int64)
    if not is_last[-1]:
        raise RecordError("a number is cut off")
    ends = np.flatnonzero(is_last)
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    widths = ends - starts
    longest = int(widths.max())
    if longest > 9:
        raise RecordError("a number is longer than ten bytes")
    low = (digits & np.uint8(0x7F)).astype(np.uint64)
    values = low[starts]
    for digit in range(1, longest + 1):
        rows = np.flatnonzero(widths >= digit)
        values[rows] |= low[starts[rows] + digit] << np.uint64(7 * digit)
    return values.view(np.int64)


def _decode_ints(data, position, end):
    parts, singles = [], []
    for number, wire, start, stop in _fields(data, position, end):
        if number != 1:
            continue
        if wire == _VARINT:
            singles.append(start)
        elif wire == _DELIMITED:
            if singles:
                parts.append(np.array(singles, np.uint64).view(np.int64))
                singles = []
            parts.append(_decode_varints(
                np.frombuffer(data, np.uint8, stop - start, start)))
        else:
            raise RecordError("an integer has wire type %d" % wire)
    if singles:
        parts.append(np.array(singles, np.uint64).view(np.int64))
    return _joined(parts, np.int64)


def _decode_floats(data, position, end):
    parts, singles = [], bytearray()
    for number, wire, start, stop in _fields(data, position, end):
        if number != 1:
            continue
        if wire not in (_FIXED32, _DELIMITED) or (stop - start) % 4:
            raise RecordError("a float list has wire type %d and %d bytes"
                              % (wire, stop - start))
        singles += data[start:stop]
    if singles:
        parts.append(np.frombuffer(bytes(singles), "<f4").astype(np.float32))
    return _joined(parts, np.float32)


def _decode_bytes(data, position, end):
    values = [data[start:stop] for number, wire, start, stop
              in _fields(data, position, end)
              if number == 1 and wire == _DELIMITED]
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
    for number, wire, start, stop in _fields(data, position, end):
        if number not in _LISTS or wire != _DELIMITED:
            continue
        if number != kind:
            kind, parts = number, []
        parts.append(_LISTS[number](data, start, stop))
    return _joined(parts, None) if parts else None


def _decode_entry(data, position, end):
    """(name, array or None) of one entry of the feature map."""
    name, values = "", None
    for number, wire, start, stop in _fields(data, position, end):
        if wire != _DELIMITED:
            continue
        if number == 1:
            try:
                name = data[start:stop].decode("utf-8")
            except UnicodeDecodeError:
                raise RecordError("a feature's name is not UTF-8")
        elif number == 2:
            values = _decode_feature(data, start, stop)
    return name, values


def decode_example(data):
    """The features of a serialized tf.train.Example.

    Fields in any order, unknown fields, and lists that are not packed are
    read as TensorFlow reads them.

    Args:
      data: bytes.

    Returns:
      {name: [N] np.int64 or np.float32, or object for a list of bytes}; a
      feature without any list is left out.

    Raises:
      RecordError: the bytes are not a tf.train.Example.

    Example: the one of `encode_example`, backwards.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError("%d bytes are more than the limit of %d"
                          % (len(data), MAX_RECORD_BYTES))
    features = {}
    for number, wire, start, stop in _fields(data, 0, len(data)):
        if number != 1 or wire != _DELIMITED:
            continue
        for inner, kind, first, last in _fields(data, start, stop):
            if inner != 1 or kind != _DELIMITED:
                continue
            name, values = _decode_entry(data, first, last)
            features.pop(name, None)
            if values is not None:
                features[name] = values
    return features


def _sync_directory(path):
    """Makes a rename in the directory of `path` survive a power cut."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RecordWriter:
    """Writes a TFRecord file that has its name only when it is complete.

    Until `close` the file is called `path` + ".incomplete"; `discard` removes
    it. As a context manager: `close` when the block ends well, else `discard`.

    Attributes:
      path: the final name.
      records, bytes: how many were written so far.
      sha256: hex digest of what was written so far.

    Raises:
      OSError: names the file, also for a full disk.
    """

    def __init__(self, path):
        self.path = path
        self.records = 0
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._temporary = path + ".incomplete"
        self._file = open(self._temporary, "wb", buffering=1 << 20)

    @property
    def sha256(self):
        return self._digest.hexdigest()

    def write(self, data):
        """Appends one record, the bytes of an example."""
        framed = frame(data)
        try:
            self._file.write(framed)
        except OSError as error:
            raise self._named(error)
        self._digest.update(framed)
        self.bytes += len(framed)
        self.records += 1

    def close(self):
        """Gives the complete file its final name."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
            _sync_directory(self.path)
        except OSError as error:
            self.discard()
            raise self._named(error)

    def discard(self):
        """Removes the unfinished file."""
        try:
            self._file.close()
        except OSError:
            pass  # a full disk: what could not be flushed is removed below
        if os.path.exists(self._temporary):
            os.remove(self._temporary)

    def summary(self):
        """The entry of this file in manifest.json."""
        return {"name": os.path.basename(self.path), "records": self.records,
                "bytes": self.bytes, "sha256": self.sha256}

    def _named(self, error):
        if error.filename is None:
            error.filename = self.path
        return error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
        else:
            self.discard()


def write_atomically(path, data):
    """Writes bytes to a file that has its name only when it is complete."""
    temporary = path + ".incomplete"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_directory(path)
    except OSError as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if error.filename is None:
            error.filename = path
        raise


def damage(path, number, offset, what):
    """The RecordError of one record of a file."""
    return RecordError(
        "%r, record %d (counted from 0) at byte %d: %s; copy or build the file "
        "again, or pass --skip_corrupt_records" % (path, number, offset, what))


def _header_fault(header, left):
    """What is wrong with a frame's 12 first bytes, None if nothing is.

    Args:
      header: at most 12 bytes.
      left: bytes from the frame's start to the end of the file.
    """
    if len(header) < HEADER.size:
        return ("the file is truncated: a header takes %d bytes, %d are there"
                % (HEADER.size, len(header)))
    length, crc = HEADER.unpack(header)
    if crc != masked_crc32c(header[:8]):
        if header[:2] == b"\x1f\x8b":
            return "this is a gzip file; decompress it first"
        return "the checksum of the length does not match"
    if length > MAX_RECORD_BYTES:
        return ("the length %d is above the limit of %d bytes"
                % (length, MAX_RECORD_BYTES))
    if length + FRAME_BYTES > left:
        return ("the file is truncated: the record takes %d bytes, %d are there"
                % (length + FRAME_BYTES, left))
    return None


def index_frames(descriptor, path):
    """Where the records of a file start, from the frames' headers alone.

    Args:
      descriptor: an open file's number; its position is not used or changed.
      path: the file's name, for messages.

    Returns:
      ([records + 1] int64 byte offsets, the last one where the next frame
      would start; None or the RecordError that ended the walk).
    """
    size = os.fstat(descriptor).st_size
    offsets = array.array("q", [0])
    position, chunk, chunk_start = 0, b"", 0
    unpack, header_bytes = HEADER.unpack_from, HEADER.size
    while position < size:
        inside = position - chunk_start
        if inside + header_bytes > len(chunk):
            chunk = os.pread(descriptor, _INDEX_BYTES, position)
            chunk_start, inside = position, 0
        header = chunk[inside:inside + header_bytes]
        following = size + 1
        if len(header) == header_bytes:
            length, crc = unpack(header)
            if length <= MAX_RECORD_BYTES and crc == length_crc(length):
                following = position + length + FRAME_BYTES
        if following > size:
            fault = _header_fault(header, size - position)
            number = len(offsets) - 1
            return (np.array(offsets, np.int64),
                    damage(path, number, position, fault))
        position = following
        offsets.append(position)
    return np.array(offsets, np.int64), None


def data_fault(framed):
    """What is wrong with a whole frame's bytes, None if nothing is."""
    fault = _header_fault(framed[:HEADER.size], len(framed))
    if fault is not None:
        return fault
    data = memoryview(framed)[HEADER.size:-FOOTER.size]
    length, crc = HEADER.unpack_from(framed)
    if length != len(data):
        return ("the length is %d, but %d bytes stood there when the file was "
                "indexed" % (length, len(data)))
    if FOOTER.unpack_from(framed, len(framed) - 4)[0] != masked_crc32c(data):
        return "the checksum of the data does not match"
    return None
