# SPDX-License-Identifier: Apache-2.0
"""safetensors files, read and written one tensor at a time.

A file is the length of its header (uint64, little endian), the header (JSON:
name -> dtype, shape, data_offsets) and the tensors' bytes, end to end.

The safetensors package writes a file from tensors that are all in memory, and
has no bfloat16 without torch; this module needs one tensor at a time.

Source: the format's description in huggingface/safetensors, README.md.
"""

import json
import os
import struct

import numpy as np

from common import errors, files
from weights import lazy_tensors

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"


def _damaged(path, what):
    return errors.UserError(
        f"{path} is no whole safetensors file: {what}; copy or convert it again"
    )


def load(path):
    """The tensors of a file, not yet read.

    Returns:
      {name: weights.Tensor}, in the order of the file.

    Raises:
      errors.UserError: a header that is too large, no JSON, or does not
        describe exactly the bytes that are there.
    """
    file_size = os.path.getsize(path)
    if file_size < _LENGTH.size:
        raise _damaged(path, f"it has {file_size} bytes")
    (length,) = _LENGTH.unpack(files.read_exactly(path, 0, _LENGTH.size))
    start = _LENGTH.size + length
    if length > files.MAX_JSON_BYTES:
        raise _damaged(
            path,
            f"its header of {length} bytes is above the limit of "
            f"{files.MAX_JSON_BYTES}",
        )
    if start > file_size:
        raise _damaged(
            path,
            f"its header of {length} bytes ends behind the file, which has "
            f"{file_size}",
        )
    header = files.parse_json(
        files.read_exactly(path, _LENGTH.size, length), path
    )
    header.pop(_METADATA, None)
    entries = sorted(
        (_entry(path, name, value) for name, value in header.items()),
        key=lambda entry: entry[1:],
    )
    end = 0
    for name, begin, stop, _, _ in entries:
        if begin != end:
            raise _damaged(
                path,
                f"{lazy_tensors.quoted(name)} begins at byte {begin}, the "
                f"tensor before it ends at {end}",
            )
        end = stop
    if start + end != file_size:
        raise _damaged(
            path,
            f"the header describes {end} bytes of tensors, {file_size - start} "
            "are there",
        )
    return {
        name: _tensor(path, name, start + begin, dtype, shape)
        for name, begin, _, dtype, shape in entries
    }


def _entry(path, name, value):
    """(name, begin, end, dtype, shape) of a header's value, checked."""
    name_text = lazy_tensors.quoted(name)
    if not isinstance(value, dict):
        raise _damaged(path, f"{name_text} is not described by an object")
    dtype, shape = value.get("dtype"), value.get("shape")
    offsets = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in lazy_tensors.DTYPES:
        raise _damaged(path, f"the type of {name_text} is not known")
    if (
        not _whole_numbers(shape)
        or not _whole_numbers(offsets)
        or len(offsets) != 2
        or len(shape) > 8
    ):
        raise _damaged(
            path, f"shape or data_offsets of {name_text} are not as expected"
        )
    size = lazy_tensors.count(shape) * lazy_tensors.DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise _damaged(
            path,
            f"{name_text} takes {size} bytes by its shape, "
            f"{offsets[1] - offsets[0]} by its offsets",
        )
    return name, offsets[0], offsets[1], dtype, tuple(shape)


def _whole_numbers(values):
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 48 for value in values
    )


def _tensor(path, name, offset, dtype, shape):
    def read():
        size = lazy_tensors.count(shape) * lazy_tensors.DTYPES[dtype].itemsize
        data = files.read_exactly(path, offset, size)
        return np.frombuffer(data, lazy_tensors.DTYPES[dtype]).reshape(shape)

    return lazy_tensors.Tensor(dtype, shape, read, name)


def write(stream, tensors, written=None):
    """Writes a file that transformers and torch load.

    Args:
      stream: binary, at its start.
      tensors: {name: weights.Tensor}; larger types come first in the file, so
        that every tensor is aligned.
      written: called with (name, tensor) after each.
    """
    names = sorted(
        tensors,
        key=lambda name: (
            -lazy_tensors.DTYPES[tensors[name].dtype].itemsize,
            name,
        ),
    )
    header, end = {_METADATA: {"format": "pt"}}, 0
    for name in names:
        tensor = tensors[name]
        begin = end
        end += (
            lazy_tensors.count(tensor.shape)
            * lazy_tensors.DTYPES[tensor.dtype].itemsize
        )
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    stream.write(_LENGTH.pack(len(text)) + text)
    for name in names:
        array = np.ascontiguousarray(tensors[name].read())
        stream.write(array.data)
        if written is not None:
            written(name, tensors[name])
