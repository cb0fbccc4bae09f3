# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save, read without torch and without running pickled code.

A pickle is a program: its opcodes may import any function and call it. This
module interprets the few opcodes that build plain values, and nothing else:

* numbers, texts, lists, tuples and dicts become themselves (sets become lists);
* a tensor, which torch writes as a call of torch._utils._rebuild_tensor_v2 on a
  storage, becomes a `weights.Tensor`;
* any other class or function is never imported or called. What it would have
  made becomes an `Inert`, which keeps the arguments and attributes as data;
* an opcode that is not in the table below is an error.

Both formats are read: the zip archive of torch 1.6 and later, and the older
chain of pickles (the released RoBERTa models are of that kind).

Source: torch/serialization.py, torch/_utils.py; Lib/pickletools.py for the
opcodes.
"""

import os
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
# A large model's with its optimizer needs a third of them.
_MAX_OPCODES = 300 * 1000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
    MemoryError,
)


class Global(typing.NamedTuple):
    """The name of a class or function that is not looked up."""

    module: str
    name: str


class Inert:
    """What a class or function that is not known would have made.

    Attributes:
      kind: its Global, or what stood in its place.
      arguments: what it would have been called with.
      state: what would have become its attributes, or None.
    """

    __slots__ = ("kind", "arguments", "state")

    def __init__(self, kind, arguments):
        self.kind = kind
        self.arguments = arguments
        self.state = None


class _Storage(typing.NamedTuple):
    """A run of numbers that tensors are cut from."""

    dtype: str
    size: int  # elements
    read: typing.Callable  # (first element, elements) -> array [elements]


class _Stream:
    """The bytes of a pickle: as pickletools reads them, and no more of them.

    Args:
      stream: binary.
      size: bytes that may be read.
    """

    def __init__(self, stream, size):
        self._stream = stream
        self._left = size

    def read(self, size):
        return self._taken(self._stream.read(min(size, self._left + 1)))

    def readline(self):
        return self._taken(self._stream.readline(self._left + 1))

    def _taken(self, data):
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(
                "a value ends behind the pickled part, or that has more than "
                f"{_MAX_PICKLE_BYTES} bytes"
            )
        return data


def _hashable(key):
    """Keys that cost no recursion: deep tuples would overflow the C stack."""
    if isinstance(key, tuple) and not isinstance(key, Global):
        return all(isinstance(part, (str, int, float)) for part in key)
    return key is None or isinstance(
        key, (str, bytes, int, float, Global, Inert)
    )


class _Interpreter:
    """Runs one pickle.

    Args:
      storage: gives the _Storage of a persistent id.
    """

    def __init__(self, storage):
        self._storage = storage
        self._stack = []
        self._marks = []
        self._memo = {}

    def run(self, stream):
        """The value of the pickle that begins here."""
        for _ in range(_MAX_OPCODES):
            code = stream.read(1).decode("latin-1")
            if not code:
                raise EOFError("the pickled part is cut off")
            opcode = pickletools.code2op.get(code)
            if opcode is None or opcode.name not in _ALLOWED:
                raise ValueError(
                    f"opcode {(opcode.name if opcode else code)!r} is not one "
                    "that torch.save writes"
                )
            argument = opcode.arg.reader(stream) if opcode.arg else None
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError(
            f"the pickled part has more than {_MAX_OPCODES} opcodes"
        )

    def _step(self, name, argument):
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)

    def mark(self, _):
        self._marks.append(len(self._stack))

    def _since_mark(self):
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def tuple_since_mark(self, _):
        self._stack.append(tuple(self._since_mark()))

    def tuple1(self, _):
        self._stack.append((self._stack.pop(),))

    def tuple2(self, _):
        last = self._stack.pop()
        self._stack.append((self._stack.pop(), last))

    def tuple3(self, _):
        last, middle = self._stack.pop(), self._stack.pop()
        self._stack.append((self._stack.pop(), middle, last))

    def list_since_mark(self, _):
        self._stack.append(self._since_mark())

    def dict_since_mark(self, _):
        pairs = self._since_mark()
        self._stack.append({})
        self._update(pairs)

    def append(self, _):
        self._extend([self._stack.pop()])

    def appends(self, _):
        self._extend(self._since_mark())

    def _extend(self, values):
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise TypeError("values are added to what is no list")

    def set_item(self, _):
        value = self._stack.pop()
        self._update([self._stack.pop(), value])

    def set_items(self, _):
        self._update(self._since_mark())

    def _update(self, pairs):
        target = self._stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict):
            raise TypeError("keys are set in what is no dict")
        if len(pairs) % 2 or not all(map(_hashable, pairs[::2])):
            raise TypeError("a key of a dict is neither text nor number")
        target.update(zip(pairs[::2], pairs[1::2]))

    def put(self, index):
        self._memo[index] = self._stack[-1]

    def memoize(self, _):
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index):
        self._stack.append(self._memo[index])

    def pop(self, _):
        self._stack.pop()

    def global_name(self, names):
        self._stack.append(Global(*names.split(" ", 1)))

    def stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("the name of a class is no text")
        self._stack.append(Global(module, name))

    def reduce(self, _):
        arguments = self._stack.pop()
        self._stack.append(_made(self._stack.pop(), arguments))

    def new_object(self, _):
        arguments = self._stack.pop()
        self._stack.append(Inert(self._stack.pop(), arguments))

    def build(self, _):
        state = self._stack.pop()
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state

    def persistent_id(self, _):
        self._stack.append(self._storage(self._stack.pop()))


# Opcodes whose argument is the value.
_VALUES = frozenset(
    (
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BINSTRING",
        "SHORT_BINSTRING",
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
}
_ACTIONS = {
    "MARK": _Interpreter.mark,
    "TUPLE": _Interpreter.tuple_since_mark,
    "TUPLE1": _Interpreter.tuple1,
    "TUPLE2": _Interpreter.tuple2,
    "TUPLE3": _Interpreter.tuple3,
    "LIST": _Interpreter.list_since_mark,
    "FROZENSET": _Interpreter.list_since_mark,
    "DICT": _Interpreter.dict_since_mark,
    "APPEND": _Interpreter.append,
    "APPENDS": _Interpreter.appends,
    "ADDITEMS": _Interpreter.appends,
    "SETITEM": _Interpreter.set_item,
    "SETITEMS": _Interpreter.set_items,
    "BINPUT": _Interpreter.put,
    "LONG_BINPUT": _Interpreter.put,
    "MEMOIZE": _Interpreter.memoize,
    "BINGET": _Interpreter.get,
    "LONG_BINGET": _Interpreter.get,
    "POP": _Interpreter.pop,
    "GLOBAL": _Interpreter.global_name,
    "STACK_GLOBAL": _Interpreter.stack_global,
    "REDUCE": _Interpreter.reduce,
    "NEWOBJ": _Interpreter.new_object,
    "BUILD": _Interpreter.build,
    "BINPERSID": _Interpreter.persistent_id,
}
_ALLOWED = (
    _VALUES
    | set(_CONSTANTS)
    | set(_EMPTY)
    | set(_ACTIONS)
    | {"PROTO", "FRAME", "STOP"}
)


def _made(function, arguments):
    """What a call would have given: a tensor, a dict, or an Inert."""
    if not isinstance(arguments, tuple):
        raise TypeError("the arguments of a call are no tuple")
    if function in (
        Global("torch._utils", "_rebuild_tensor"),
        Global("torch._utils", "_rebuild_tensor_v2"),
    ):
        return _tensor(*arguments[:4])
    if function in (
        Global("torch._utils", "_rebuild_parameter"),
        Global("torch._utils", "_rebuild_parameter_with_state"),
    ):
        return arguments[0]
    if function == Global("collections", "OrderedDict") and not arguments:
        return {}
    return Inert(function, arguments)


def _whole_numbers(values):
    return (
        isinstance(values, tuple)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
    )


def _tensor(storage, offset, shape, strides):
    """A weights.Tensor; it stays within its storage and repeats nothing."""
    if (
        not isinstance(storage, _Storage)
        or not _whole_numbers((offset,))
        or not _whole_numbers(shape)
        or not _whole_numbers(strides)
        or len(shape) != len(strides)
    ):
        raise TypeError("a tensor is not described as torch does")
    span = 0
    if lazy_tensors.count(shape):
        span = 1 + sum(
            (size - 1) * stride for size, stride in zip(shape, strides)
        )
    if offset + span > storage.size or lazy_tensors.count(shape) > storage.size:
        raise ValueError(
            f"a tensor of shape {lazy_tensors.shape_text(shape)} does not fit "
            f"into its storage of {storage.size} numbers"
        )

    def read():
        numbers = storage.read(offset, span)
        return np.lib.stride_tricks.as_strided(
            numbers,
            shape,
            [stride * numbers.itemsize for stride in strides],
            writeable=False,
        )

    return lazy_tensors.Tensor(storage.dtype, shape, read, "")


def _storage_id(value):
    """(dtype, key, elements, view or None) of a persistent id."""
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise TypeError("a storage is not described as torch does")
    _, kind, key, _, size = value[:5]
    if not isinstance(kind, Global) or kind.name not in _STORAGES:
        raise ValueError("a storage has a type that is not supported")
    if not isinstance(key, str) or not _whole_numbers((size,)):
        raise TypeError("a storage is not described as torch does")
    return (
        _STORAGES[kind.name],
        key,
        size,
        value[5] if len(value) > 5 else None,
    )


def load(path):
    """The value that was saved, with `weights.Tensor`s in it.

    Raises:
      errors.UserError: a damaged file, or one that needs more than plain
        values and tensors to be built.
      OSError: the file cannot be opened.
    """
    with open(path, "rb") as stream:
        try:
            if zipfile.is_zipfile(stream):
                return _load_zip(stream, path)
            return _load_legacy(stream, path)
        except errors.UserError:
            raise
        except _DAMAGE as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            # The zip module seeks to where a damaged file tells it to.
            reason = error.strerror or str(error)
    raise errors.UserError(
        f"{path} is no file of torch.save that can be read without running its "
        f"code: {reason}; copy the file again, or save the weights as "
        "model.safetensors"
    )


def _load_zip(stream, path):
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
    pickles = [
        name
        for name in members
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl")
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
    known = {}

    def storage(value):
        dtype, key, size, _ = _storage_id(value)
        info = members.get(folder + "data/" + key)
        if info is None:
            raise ValueError(f"storage {lazy_tensors.quoted(key)} is missing")
        if key not in known:
            known[key] = _zip_storage(path, info, dtype, size)
        return _as_known(known, key, dtype, size)

    info = members[pickles[0]]
    stream.seek(_member_start(path, info))
    return _Interpreter(storage).run(
        _Stream(stream, min(info.file_size, _MAX_PICKLE_BYTES))
    )


def _as_known(known, key, dtype, size):
    """The storage of a key, which has one type and size throughout."""
    if (known[key].dtype, known[key].size) != (dtype, size):
        raise ValueError(
            f"storage {lazy_tensors.quoted(key)} is described in two ways"
        )
    return known[key]


def _member_start(path, info):
    """Where the bytes of an uncompressed member begin."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(
            f"{lazy_tensors.quoted(info.filename)} is compressed, which "
            "torch.save does not do"
        )
    header = files.read_exactly(path, info.header_offset, _LOCAL_HEADER.size)
    signature, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    if signature != b"PK\x03\x04":
        raise ValueError(
            f"{lazy_tensors.quoted(info.filename)} is not where the archive's "
            "index says"
        )
    return info.header_offset + _LOCAL_HEADER.size + name_size + extra_size


def _member(path, info, offset, size):
    """Bytes of a member; its checksum is compared when it is read whole."""
    data = files.read_exactly(path, _member_start(path, info) + offset, size)
    if size == info.file_size and zlib.crc32(data) != info.CRC:
        raise errors.UserError(
            f"{path}: the checksum of {lazy_tensors.quoted(info.filename)} "
            "does not match; copy the file again"
        )
    return data


def _zip_storage(path, info, dtype, size):
    kind = lazy_tensors.DTYPES[dtype]
    end = _member_start(path, info) + size * kind.itemsize
    if info.file_size != size * kind.itemsize or end > os.path.getsize(path):
        raise ValueError(
            f"storage {lazy_tensors.quoted(info.filename)} has "
            f"{info.file_size} bytes, expected are {size * kind.itemsize}"
        )

    def read(first, elements):
        return np.frombuffer(
            _member(
                path, info, first * kind.itemsize, elements * kind.itemsize
            ),
            kind,
        )

    return _Storage(dtype, size, read)


def _load_legacy(stream, path):
    """The value of a chain: magic, protocol, machine, value, keys, storages."""

    def no_storage(_):
        raise ValueError("a storage stands where none is expected")

    def plain():
        return _Interpreter(no_storage).run(_Stream(stream, _MAX_PICKLE_BYTES))

    stream.seek(0)
    first = stream.read(2)
    if first == b"PK":
        raise ValueError("the end of its zip archive is missing")
    if first[:1] != b"\x80":
        raise ValueError("it is neither a zip archive nor a pickle")
    stream.seek(0)
    if plain() != _LEGACY_MAGIC or plain() != _LEGACY_PROTOCOL:
        raise ValueError("it does not begin as torch.save's files do")
    machine = plain()
    if not isinstance(machine, dict) or not machine.get("little_endian"):
        raise ValueError("it was saved on a big-endian machine")
    starts, known = {}, {}

    def storage(value):
        dtype, key, size, view = _storage_id(value)
        if view is not None:
            raise ValueError(
                "a storage is a view of another one, as torch 0.3 wrote them"
            )
        if key not in known:
            known[key] = _legacy_storage(path, starts, key, dtype, size)
        return _as_known(known, key, dtype, size)

    value = _Interpreter(storage).run(_Stream(stream, _MAX_PICKLE_BYTES))
    keys = plain()
    _locate(path, stream.tell(), keys, known, starts)
    return value


def _locate(path, position, keys, known, starts):
    """Fills `starts` with where the bytes of each storage begin.

    Args:
      position: where the first storage begins.
      keys: the storages in the order of the file.
    """
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(known)
    ):
        raise ValueError("the storages are not those that the tensors need")
    for key in keys:
        (size,) = struct.unpack("<q", files.read_exactly(path, position, 8))
        if size != known[key].size:
            raise ValueError(
                f"storage {lazy_tensors.quoted(key)} has {size} numbers, "
                f"expected are {known[key].size}"
            )
        starts[key] = position + 8
        position += 8 + size * lazy_tensors.DTYPES[known[key].dtype].itemsize
    if position > os.path.getsize(path):
        raise ValueError(f"the file is cut off: {position} bytes are expected")


def _legacy_storage(path, starts, key, dtype, size):
    kind = lazy_tensors.DTYPES[dtype]

    def read(first, elements):
        return np.frombuffer(
            files.read_exactly(
                path,
                starts[key] + first * kind.itemsize,
                elements * kind.itemsize,
            ),
            kind,
        )

    return _Storage(dtype, size, read)


def attributes(value):
    """The attributes of an object that was pickled, or the keys of a dict.

    Reads what argparse.Namespace and omegaconf's DictConfig leave in a file.

    Returns:
      {name: value}; empty for anything else.
    """
    for _ in range(8):  # an object may hold itself
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
