# SPDX-License-Identifier: Apache-2.0
"""TFRecord files, without TensorFlow.

A file is a chain of frames: length (uint64), masked CRC32C of the length
(uint32), the data, masked CRC32C of the data (uint32), all little endian.

Source: tensorflow/core/lib/io/record_writer.h (frames), RFC 3720 appendix B.4
(CRC32C test vectors).
"""

import array
import functools
import hashlib
import os
import struct
import typing

import numpy as np

from common import files
from common.tf_example import MAX_RECORD_BYTES, RecordError

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
FRAME_BYTES = HEADER.size + FOOTER.size

_CRC_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
_CRC_BLOCK = 2048
_INDEX_BYTES = 1 << 20


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
            _CRC_POLYNOMIAL
        )
    table[0] = row
    for distance in range(1, 4):
        table[distance] = _step(table, table[distance - 1])
    filled = 4
    while filled < _CRC_BLOCK:
        table[filled : 2 * filled] = _advance(table, table[:filled], filled)
        filled *= 2
    return table


def _step(table, state):
    """The states one zero byte later."""
    return (state >> np.uint32(8)) ^ table[0][state & np.uint32(255)]


def _advance(table, state, distance):
    """The states `distance` >= 4 zero bytes later."""
    result = table[distance - 1][state & np.uint32(255)]
    for byte in range(1, 4):
        result = (
            result
            ^ table[distance - 1 - byte][
                (state >> np.uint32(8 * byte)) & np.uint32(255)
            ]
        )
    return result


@functools.lru_cache(maxsize=None)
def _crc_offsets():
    """[_CRC_BLOCK] int64: where the row of each byte of a full block starts."""
    return np.arange(_CRC_BLOCK - 1, -1, -1, dtype=np.int64) * 256


def crc32c(data: typing.Union[bytes, memoryview]) -> int:
    """The CRC32C of bytes, an int of 32 bits.

    Example: crc32c(b"123456789") == 0xE3069283
    """
    table, offsets = _crc_table().reshape(-1), _crc_offsets()
    values = np.frombuffer(data, np.uint8)
    state = 0xFFFFFFFF
    for start in range(0, len(values), _CRC_BLOCK):
        block = values[start : start + _CRC_BLOCK]
        # The state so far enters as if it had been XORed into the next bytes;
        # what a block shorter than the state leaves over is shifted out.
        rest = 0
        head = np.frombuffer(struct.pack("<I", state), np.uint8)
        taken = min(4, len(block))
        index = offsets[_CRC_BLOCK - len(block) :] + block
        index[:taken] ^= head[:taken]
        if taken < 4:
            rest = state >> (8 * taken)
        state = int(np.bitwise_xor.reduce(table.take(index))) ^ rest
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: typing.Union[bytes, memoryview]) -> int:
    """CRC32C as frames store it: rotated, so that a CRC of a CRC is safe."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.lru_cache(maxsize=1 << 14)
def length_crc(length: int) -> int:
    """The masked CRC32C of a frame's length field."""
    return masked_crc32c(struct.pack("<Q", length))


def frame(data: bytes) -> bytes:
    """The frame of one record."""
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(
            f"a record of {len(data)} bytes is longer than the limit of "
            f"{MAX_RECORD_BYTES}; use a smaller --max_seq_length"
        )
    return b"".join(
        [
            HEADER.pack(len(data), length_crc(len(data))),
            data,
            FOOTER.pack(masked_crc32c(data)),
        ]
    )


class RecordWriter:
    """Writes a TFRecord file whose name appears when it is complete.

        with RecordWriter(path) as writer:
            writer.write(data)

    An exception in the block leaves no file behind.

    Attributes:
      path: of the file.
      records, bytes: number written so far.

    Raises:
      OSError: names the file, also for a full disk.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.records = 0
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._new_file = files.new_file(path)

    def __enter__(self) -> "RecordWriter":
        self._stream = self._new_file.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> typing.Optional[bool]:
        return self._new_file.__exit__(kind, error, traceback)

    def write(self, data: bytes) -> None:
        """Appends one record, the bytes of an example."""
        framed = frame(data)
        self._stream.write(framed)
        self._digest.update(framed)
        self.bytes += len(framed)
        self.records += 1

    def summary(self) -> typing.Dict[str, typing.Any]:
        """The entry of this file in manifest.json."""
        return {
            "name": os.path.basename(self.path),
            "records": self.records,
            "bytes": self.bytes,
            "sha256": self._digest.hexdigest(),
        }


def damage(path: str, number: int, offset: int, what: object) -> RecordError:
    """The RecordError of one record of a file."""
    return RecordError(
        f"{path!r}, record {number} (counted from 0) at byte {offset}: {what}; "
        "copy or build the file again, or pass --skip_corrupt_records"
    )


def _header_fault(header, left):
    """The fault of a frame's first 12 bytes, None if there is none.

    Args:
      header: at most 12 bytes.
      left: bytes from the frame's start to the end of the file.
    """
    if len(header) < HEADER.size:
        return (
            f"the file is truncated: expected a header of {HEADER.size} "
            f"bytes, got {len(header)}"
        )
    length, crc = HEADER.unpack(header)
    if crc != masked_crc32c(header[:8]):
        if header[:2] == b"\x1f\x8b":
            return "this is a gzip file; decompress it first"
        return "the checksum of the length does not match"
    if length > MAX_RECORD_BYTES:
        return (
            f"the length {length} is above the limit of {MAX_RECORD_BYTES} "
            "bytes"
        )
    if length + FRAME_BYTES > left:
        return (
            "the file is truncated: expected a record of "
            f"{length + FRAME_BYTES} bytes, got {left}"
        )
    return None


def index_frames(
    descriptor: int, path: str
) -> typing.Tuple[np.ndarray, typing.Optional[RecordError]]:
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
        header = chunk[inside : inside + header_bytes]
        following = size + 1
        if len(header) == header_bytes:
            length, crc = unpack(header)
            if length <= MAX_RECORD_BYTES and crc == length_crc(length):
                following = position + length + FRAME_BYTES
        if following > size:
            fault = _header_fault(header, size - position)
            return (
                np.array(offsets, np.int64),
                damage(path, len(offsets) - 1, position, fault),
            )
        position = following
        offsets.append(position)
    return np.array(offsets, np.int64), None


def data_fault(framed: bytes) -> typing.Optional[str]:
    """The fault of a complete frame, None if there is none."""
    fault = _header_fault(framed[: HEADER.size], len(framed))
    if fault is not None:
        return fault
    data = memoryview(framed)[HEADER.size : -FOOTER.size]
    length, crc = HEADER.unpack_from(framed)
    if length != len(data):
        return (
            f"the length is {length}, but was {len(data)} when the file was "
            "indexed"
        )
    if FOOTER.unpack_from(framed, len(framed) - 4)[0] != masked_crc32c(data):
        return "the checksum of the data does not match"
    return None
