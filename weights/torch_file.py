# SPDX-License-Identifier: Apache-2.0
"""Reads files of torch.save without torch and without running pickled code.

A pickle is a program: its opcodes may import any function and call it. Here
the opcodes are checked first: those that torch.save does not write are an
error, and so are more or larger ones than a model needs. The rest runs in a
`pickle.Unpickler` that imports nothing:

* numbers, texts, lists, tuples and dicts become themselves;
* a tensor, which torch writes as a call of torch._utils._rebuild_tensor_v2 on a
  storage, becomes a `lazy_tensors.Tensor`;
* an object of any other class becomes an `Inert`, which keeps its attributes.

Both formats are read: the zip archive of torch 1.6 and later, and the older
chain of pickles (the released RoBERTa models use it).

Source: torch/serialization.py, torch/_utils.py; Lib/pickletools.py for the
opcodes.
"""

import io
import os
import pickle
import pickletools
import struct
import typing
import zipfile
import zlib

import numpy as np

from common import errors, files
from weights import lazy_tensors

_STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}

_MAX_PICKLE_BYTES = 16 << 20
# A large model with its optimizer needs a third of them.
_MAX_OPCODES = 300 * 1000
# Every call with a tuple copies it; a tensor's arguments take 40 opcodes.
_MAX_TUPLE_OPCODES = 4000
_MAX_KEY_PARTS = 8
_OPCODES = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 "
    "BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BINSTRING SHORT_BINSTRING EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT "
    "LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ "
    "BUILD BINPERSID".split()
)
# In place of EMPTY_DICT: opcodes that call find_class("builtins", "dict").
_NEW_DICT = b"cbuiltins\ndict\n)R"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    EOFError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    NotImplementedError,
    MemoryError,
)


class Inert:
    """An object of a class that is not imported.

    It and its subclasses define what a pickle can do to an object, so that no
    opcode changes the class itself.

    Attributes:
      state: what would have become its attributes, or None.
    """

    state = None

    def __init__(self, *arguments):
        """Ignores what the class would have been called with."""

    def __setstate__(self, state):
        self.state = state

    def append(self, value):
        """Ignores an item."""

    extend = append

    def __setitem__(self, key, value):
        """Ignores an item."""


class _Dict(dict):
    """A dict; hashing deep tuples as its keys would overflow the C stack."""

    __slots__ = ()

    def __init__(self):
        super().__init__()

    def __setitem__(self, key, value):
        parts = key if type(key) is tuple else (key,)
        if len(parts) > _MAX_KEY_PARTS or not all(
            part is None or isinstance(part, (str, bytes, int, float, Inert))
            for part in parts
        ):
            raise TypeError("a key of a dict is neither text nor number")
        super().__setitem__(key, value)

    def __setstate__(self, state):
        """Ignores the attributes that torch gives to an OrderedDict."""


class _Storage(typing.NamedTuple):
    """A run of numbers that tensors are cut from."""

    dtype: str
    size: int  # elements
    key: str
    # key -> (first element, elements) -> array; filled after unpickling.
    readers: typing.Dict[str, typing.Callable]


class _RebuiltTensor(Inert):
    """torch._utils._rebuild_tensor: gives a lazy_tensors.Tensor."""

    def __new__(cls, storage, offset, shape, strides, *_):
        """The tensor; it stays within its storage and repeats nothing."""
        if (
            not isinstance(storage, _Storage)
            or not lazy_tensors.is_shape((offset,))
            or not lazy_tensors.is_shape(shape)
            or not lazy_tensors.is_shape(strides)
            or len(shape) != len(strides)
        ):
            raise TypeError("a tensor is not described as torch does")
        count, span = lazy_tensors.count(shape), 0
        if count:
            span = 1 + sum(
                (size - 1) * stride for size, stride in zip(shape, strides)
            )
        if max(offset + span, count) > storage.size:
            raise ValueError(
                f"a tensor of shape {lazy_tensors.shape_text(shape)} does not "
                f"fit into its storage of {storage.size} numbers"
            )

        def read():
            numbers = storage.readers[storage.key](offset, span)
            return np.lib.stride_tricks.as_strided(
                numbers,
                shape,
                [stride * numbers.itemsize for stride in strides],
                writeable=False,
            )

        return lazy_tensors.Tensor(storage.dtype, tuple(shape), read, "")


class _RebuiltParameter(Inert):
    """torch._utils._rebuild_parameter: gives its tensor."""

    def __new__(cls, tensor, *_):
        return tensor


_CLASSES = {
    ("builtins", "dict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _RebuiltTensor,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuiltTensor,
    ("torch._utils", "_rebuild_parameter"): _RebuiltParameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuiltParameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Runs opcodes that `_checked` let through.

    Attributes:
      storages: {key: _Storage}.
      readers: {key: function of a first element and a count giving numbers},
        to be filled for each storage.
    """

    def __init__(self, opcodes: bytes):
        super().__init__(io.BytesIO(opcodes), encoding="latin-1")
        self.storages: typing.Dict[str, _Storage] = {}
        self.readers: typing.Dict[str, typing.Callable] = {}

    def find_class(self, module, name):
        """Imports nothing: a stand-in, or the dtype of a kind of storage."""
        return _CLASSES.get((module, name), Inert)

    def persistent_load(self, pid):
        """The _Storage that a tensor is cut from."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise TypeError("a storage is not described as torch does")
        _, dtype, key, _, size = pid[:5]
        if not isinstance(dtype, str) or dtype not in lazy_tensors.DTYPES:
            raise ValueError("a storage has a type that is not supported")
        if not isinstance(key, str) or not lazy_tensors.is_shape((size,)):
            raise TypeError("a storage is not described as torch does")
        if any(part is not None for part in pid[5:]):
            raise ValueError(
                "a storage is a view of another one, as torch 0.3 wrote them"
            )
        storage = _Storage(dtype, size, key, self.readers)
        if self.storages.setdefault(key, storage)[:2] != (dtype, size):
            raise ValueError(
                f"storage {lazy_tensors.quoted(key)} is described in two ways"
            )
        return storage


def _checked(stream):
    """The opcodes of the pickle at the position of a stream, up to its STOP.

    A dict is made by find_class, as other objects are.
    """
    opcodes, marks, data = bytearray(), [], stream.getbuffer()
    for number in range(_MAX_OPCODES):
        start = stream.tell()
        code = stream.read(1)
        if not code:
            raise EOFError("the pickled part is cut off")
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        if opcode is None or opcode.name not in _OPCODES:
            raise ValueError(
                f"opcode {(opcode.name if opcode else code)!r} is not one "
                "that torch.save writes"
            )
        argument = opcode.arg.reader(stream) if opcode.arg else None
        if opcode.name.endswith("BINPUT") and argument >= _MAX_OPCODES:
            raise ValueError(f"a value has the number {argument}")
        if opcode.name == "MARK":
            marks.append(number)
        elif opcode.name in ("TUPLE", "APPENDS", "SETITEMS"):
            is_long = number - marks.pop() > _MAX_TUPLE_OPCODES
            if is_long and opcode.name == "TUPLE":
                raise ValueError("a tuple is too long")
        if opcode.name == "EMPTY_DICT":
            opcodes += _NEW_DICT
        elif opcode.name != "FRAME":
            opcodes += data[start : stream.tell()]
        if opcode.name == "STOP":
            return bytes(opcodes)
    raise ValueError(f"the pickled part has more than {_MAX_OPCODES} opcodes")


def load(path: str) -> typing.Any:
    """The value that was saved, its tensors as `lazy_tensors.Tensor`s.

    Raises:
      errors.UserError: a damaged file, or one that needs more than plain
        values and tensors to be built.
      OSError: the file cannot be opened.
    """
    with files.opened(path) as stream:
        try:
            if zipfile.is_zipfile(stream):
                return _load_zip(zipfile.ZipFile(stream), path)
            return _load_legacy(stream, path)
        except errors.UserError:
            raise
        except _DAMAGE as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            # The zip module seeks to where a damaged file tells it to.
            reason = error.strerror or str(error)
    raise errors.UserError(
        f"{path}: not a torch.save file of weights: {reason}; copy the file "
        "again, or save the weights as model.safetensors"
    )


def _load_zip(archive, path):
    members = {info.filename: info for info in archive.infolist()}
    pickles = [
        name
        for name in members
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(pickles) != 1 or len(members) != len(archive.infolist()):
        raise ValueError("the archive does not have one data.pkl")
    folder = pickles[0][: -len("data.pkl")]
    if folder + "constants.pkl" in members:
        raise ValueError("it is a TorchScript model; a state dict is expected")
    order = members.get(folder + "byteorder")
    if (
        order is not None
        and order.file_size < 16
        and _member(path, order, 0, order.file_size) != b"little"
    ):
        raise ValueError("it was saved on a big-endian machine")

    info = members[pickles[0]]
    if info.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"data.pkl has more than {_MAX_PICKLE_BYTES} bytes")
    unpickler = _Unpickler(
        _checked(io.BytesIO(_member(path, info, 0, info.file_size)))
    )
    value = unpickler.load()
    for key, storage in unpickler.storages.items():
        info = members.get(folder + "data/" + key)
        if info is None:
            raise ValueError(f"storage {lazy_tensors.quoted(key)} is missing")
        unpickler.readers[key] = _zip_reader(path, info, storage)
    return value


def _member(path, info, offset, size):
    """Bytes of a member; read as a whole, its checksum is compared."""
    name = lazy_tensors.quoted(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{name} is compressed, which torch.save does not do")
    header = files.read_exactly(path, info.header_offset, _LOCAL_HEADER.size)
    signature, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    if signature != b"PK\x03\x04":
        raise ValueError(f"{name} is not where the archive's index says")
    start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
    data = files.read_exactly(path, start + offset, size)
    if size == info.file_size and zlib.crc32(data) != info.CRC:
        raise errors.UserError(
            f"{path}: the checksum of {name} does not match; copy the file "
            "again"
        )
    return data


def _zip_reader(path, info, storage):
    kind = lazy_tensors.DTYPES[storage.dtype]
    expected = storage.size * kind.itemsize
    if info.file_size != expected:
        raise ValueError(
            f"storage {lazy_tensors.quoted(info.filename)} has "
            f"{info.file_size} bytes, expected {expected}"
        )
    if expected:  # an error where the file is cut off
        _member(path, info, expected - 1, 1)

    def read(first, elements):
        data = _member(
            path, info, first * kind.itemsize, elements * kind.itemsize
        )
        return np.frombuffer(data, kind)

    return read


def _load_legacy(stream, path):
    """The value of a chain: magic, protocol, machine, value, keys, storages."""
    stream.seek(0)
    pickles = io.BytesIO(stream.read(_MAX_PICKLE_BYTES))
    if pickles.getvalue()[:2] == b"PK":
        raise ValueError("the end of its zip archive is missing")
    if pickles.getvalue()[:1] != b"\x80":
        raise ValueError("it is neither a zip archive nor a pickle")
    for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        if _Unpickler(_checked(pickles)).load() != expected:
            raise ValueError("it does not begin as torch.save's files do")
    machine = _Unpickler(_checked(pickles)).load()
    if not isinstance(machine, dict) or not machine.get("little_endian"):
        raise ValueError("it was saved on a big-endian machine")
    unpickler = _Unpickler(_checked(pickles))
    value = unpickler.load()
    keys, storages = _Unpickler(_checked(pickles)).load(), unpickler.storages
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise ValueError("the storages are not those that the tensors need")
    position = pickles.tell()
    for key in keys:
        unpickler.readers[key] = _legacy_reader(path, position, storages[key])
        itemsize = lazy_tensors.DTYPES[storages[key].dtype].itemsize
        position += 8 + storages[key].size * itemsize
    if position > os.path.getsize(path):
        raise ValueError(f"the file is cut off: expected {position} bytes")
    return value


def _legacy_reader(path, position, storage):
    """Checks the size before a storage's numbers."""
    (size,) = struct.unpack("<q", files.read_exactly(path, position, 8))
    if size != storage.size:
        raise ValueError(
            f"storage {lazy_tensors.quoted(storage.key)} has {size} numbers, "
            f"expected {storage.size}"
        )

    def read(first, elements):
        offset = first * lazy_tensors.DTYPES[storage.dtype].itemsize
        return lazy_tensors.read_numbers(
            path, position + 8 + offset, storage.dtype, elements
        )

    return read


def attributes(value: typing.Any) -> typing.Dict[str, typing.Any]:
    """The attributes of an object that was pickled, or the keys of a dict.

    Reads what argparse.Namespace and omegaconf's DictConfig leave in a file.

    Returns:
      {name: value}; empty for anything else.
    """
    for _ in range(8):  # an object may contain itself
        if isinstance(value, Inert):
            value = value.state
        if isinstance(value, tuple) and len(value) == 2:
            value = value[0] or value[1]
        if not isinstance(value, dict):
            return {}
        if "_content" not in value:
            return {
                name: _unwrapped(item)
                for name, item in value.items()
                if isinstance(name, str)
            }
        value = value["_content"]
    return {}


def _unwrapped(value):
    """The value of an omegaconf node, else the value itself."""
    if isinstance(value, Inert) and isinstance(value.state, dict):
        return value.state.get("_val", value)
    return value


def named(
    path: str, values: typing.Dict[typing.Any, typing.Any]
) -> typing.Dict[str, lazy_tensors.Tensor]:
    """The tensors of a dict by name, each with its name as its source.

    Raises:
      errors.UserError: a value is not a tensor.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(
            value, lazy_tensors.Tensor
        ):
            raise errors.UserError(
                f"{path}: {lazy_tensors.quoted(name)} is not a tensor; "
                "expected only weights"
            )
    return {name: value._replace(source=name) for name, value in values.items()}
