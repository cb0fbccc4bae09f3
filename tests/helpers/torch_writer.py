# SPDX-License-Identifier: Apache-2.0
"""Files as torch.save writes them, made without torch.

Values: dicts, lists, texts, numbers, argparse.Namespace and numpy arrays, which
become tensors; bytes are put into the pickle as they are, as opcodes.
"""

import argparse
import struct
import zipfile

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}


def text(value):
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _tuple(parts):
    return b"(" + b"".join(parts) + b"t"


class Pickler:
    """Opcodes of a value; the arrays in it are collected as storages."""

    def __init__(self, is_legacy):
        self.storages = []
        self._is_legacy = is_legacy

    def dump(self, value):
        return b"\x80\x02" + self.value(value) + b"."

    def value(self, value):
        if isinstance(value, bytes):
            return value
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(self.value, value)) + b"e"
        if isinstance(value, argparse.Namespace):
            return (
                b"cargparse\nNamespace\n)\x81" + self.value(vars(value)) + b"b"
            )
        if isinstance(value, np.ndarray):
            return self._tensor(value)
        return (
            b"}("
            + b"".join(
                self.value(part) for pair in value.items() for part in pair
            )
            + b"u"
        )

    def _tensor(self, array):
        strides = [stride // array.itemsize for stride in array.strides]
        flat = array.T if array.ndim == 2 and strides[0] < strides[1] else array
        self.storages.append(np.ascontiguousarray(flat))
        storage = (
            _tuple(
                [
                    text("storage"),
                    b"ctorch\n%s\n" % _STORAGES[str(array.dtype)].encode(),
                    text(str(len(self.storages) - 1)),
                    text("cpu"),
                    self.value(array.size),
                ]
                + [b"N"] * self._is_legacy
            )
            + b"Q"
        )
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n"
            + _tuple(
                [
                    storage,
                    self.value(0),
                    _tuple(map(self.value, array.shape)),
                    _tuple(map(self.value, strides)),
                    b"\x89",
                    b"ccollections\nOrderedDict\n)R",
                ]
            )
            + b"R"
        )


def save(path, value, *, compression=zipfile.ZIP_STORED):
    """The zip archive of torch 1.6 and later."""
    pickler = Pickler(False)
    with zipfile.ZipFile(str(path), "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickler.dump(value))
        archive.writestr("archive/byteorder", "little")
        for number, storage in enumerate(pickler.storages):
            archive.writestr(f"archive/data/{number}", storage.tobytes())
        archive.writestr("archive/version", "3\n")


def save_legacy(path, value):
    """The chain of pickles of torch before 1.6."""
    pickler = Pickler(True)
    data = pickler.dump(value)
    magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    plain = Pickler(True).dump
    with open(str(path), "wb") as stream:
        stream.write(
            b"\x80\x02\x8a\x0a"
            + magic
            + b"."
            + plain(1001)
            + plain(
                {
                    "protocol_version": 1001,
                    "little_endian": True,
                    "type_sizes": {"short": 2, "int": 4},
                }
            )
            + data
            + plain([str(i) for i in range(len(pickler.storages))])
        )
        for storage in pickler.storages:
            stream.write(struct.pack("<q", storage.size) + storage.tobytes())
