# SPDX-License-Identifier: Apache-2.0
"""Reads and writes safetensors files, one tensor at a time.

A file is the length of its header (uint64, little endian), the header (JSON:
name -> dtype, shape, data_offsets) and the tensors' bytes, end to end.

The safetensors package writes a file from tensors that are all in memory, and
has no bfloat16 without torch.

Source: the format's description in huggingface/safetensors, README.md.
"""

import json
import os
import struct
import typing

from common import errors, files
from weights import lazy_tensors

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"


def _damaged(path, problem):
    return errors.UserError(
        f"{path}: not a complete safetensors file: {problem}; copy or convert "
        "it again"
    )


def load(path: str) -> typing.Dict[str, lazy_tensors.Tensor]:
    """The tensors of a file, not yet read, in the order of the file.

    Raises:
      errors.UserError: a header that is too large, not JSON, or does not
        describe exactly the bytes of the file.
    """
    (length,) = _LENGTH.unpack(files.read_exactly(path, 0, _LENGTH.size))
    start = _LENGTH.size + length
    if length > files.MAX_JSON_BYTES:
        raise _damaged(
            path,
            f"its header of {length} bytes is above the limit of "
            f"{files.MAX_JSON_BYTES}",
        )
    header = files.parse_json(
        files.read_exactly(path, _LENGTH.size, length),
        path,
        "a safetensors file",
    )
    header.pop(_METADATA, None)
    tensors, end = {}, 0
    for begin, stop, name, dtype, shape in sorted(
        _entry(path, name, value) for name, value in header.items()
    ):
        if begin != end:
            raise _damaged(
                path,
                f"{lazy_tensors.quoted(name)} begins at byte {begin}, the "
                f"tensor before it ends at {end}",
            )
        tensors[name] = lazy_tensors.stored(
            path, start + begin, dtype, shape, name
        )
        end = stop
    if start + end != os.path.getsize(path):
        raise _damaged(
            path,
            f"expected {end} bytes of tensors, got "
            f"{os.path.getsize(path) - start}",
        )
    return tensors


def _entry(path, name, value):
    """(begin, end, name, dtype, shape) of a header's value, checked."""
    quoted = lazy_tensors.quoted(name)
    if not isinstance(value, dict):
        raise _damaged(path, f"{quoted} is not described by an object")
    dtype, shape = value.get("dtype"), value.get("shape")
    offsets = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in lazy_tensors.DTYPES:
        raise _damaged(path, f"the type of {quoted} is not known")
    if (
        not lazy_tensors.is_shape(shape)
        or not lazy_tensors.is_shape(offsets)
        or len(offsets) != 2
    ):
        raise _damaged(
            path, f"shape or data_offsets of {quoted} are not as expected"
        )
    begin, end = offsets
    size = lazy_tensors.count(shape) * lazy_tensors.DTYPES[dtype].itemsize
    if end - begin != size:
        raise _damaged(
            path,
            f"{quoted} takes {size} bytes by its shape, {end - begin} by its "
            "offsets",
        )
    return begin, end, name, dtype, shape


def write(
    stream: typing.BinaryIO,
    tensors: typing.Dict[str, lazy_tensors.Tensor],
    written: typing.Callable[[str], None] = lambda name: None,
) -> None:
    """Writes a file that transformers and torch load.

    Args:
      stream: binary, at its start.
      tensors: by name; larger types come first in the file, so that every
        tensor is aligned.
      written: called with the name of each tensor after it.
    """
    names = sorted(
        tensors,
        key=lambda name: (
            -lazy_tensors.DTYPES[tensors[name].dtype].itemsize,
            name,
        ),
    )
    header: typing.Dict[str, dict] = {_METADATA: {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    stream.write(_LENGTH.pack(len(text)) + text)
    for name in names:
        stream.write(lazy_tensors.raw_bytes(tensors[name]).data)
        written(name)
