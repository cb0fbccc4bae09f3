# SPDX-License-Identifier: Apache-2.0
"""torch.save's files, both formats, without torch; nothing in them is run."""

import argparse
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest

from common import errors
from helpers import torch_writer
from weights import lazy_tensors, torch_file

WRITERS = [torch_writer.save, torch_writer.save_legacy]
DICT = b"ccollections\nOrderedDict\n)R"


def saved(tmp_path, value, writer=torch_writer.save):
    writer(tmp_path / "file.pt", value)
    return str(tmp_path / "file.pt")


def refused(path):
    """The message of the UserError that a file gives."""
    with pytest.raises(errors.UserError) as caught:
        torch_file.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("writer", WRITERS)
def test_tensors_and_plain_values_are_read(tmp_path, writer):
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    value = {
        "model": {
            "w": whole,
            "t": whole.T,
            "h": np.float16([1, 2]),
            "n": np.array(5),
        },
        "list": [1, -2, 0.5, None, True, "ä"],
        3: {},
    }
    read = torch_file.load(saved(tmp_path, value, writer))
    assert read["list"] == value["list"] and read[3] == {}
    for name, array in value["model"].items():
        tensor = read["model"][name]
        assert tensor.shape == array.shape
        assert lazy_tensors.DTYPES[tensor.dtype] == array.dtype
        np.testing.assert_array_equal(tensor.read(), array)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_namespace_keeps_its_attributes_as_data(tmp_path, writer):
    path = saved(tmp_path, {"args": argparse.Namespace(layers=2)}, writer)
    arguments = torch_file.load(path)["args"]
    assert torch_file.attributes(arguments) == {"layers": 2}


def test_omegaconf_nodes_are_unwrapped(tmp_path):
    node = (
        b"comegaconf.nodes\nAnyNode\n)\x81}("
        + torch_writer.text("_val")
        + b"K\x07ub"
    )
    config = (
        b"comegaconf\nDictConfig\n)\x81}("
        + torch_writer.text("_content")
        + b"}("
        + torch_writer.text("layers")
        + node
        + b"uub"
    )
    read = torch_file.load(saved(tmp_path, {"cfg": config}))
    assert torch_file.attributes(read["cfg"]) == {"layers": 7}


def test_a_config_that_holds_itself_ends(tmp_path):
    config = (
        b"comegaconf\nDictConfig\n)\x81}q\x01("
        + torch_writer.text("_content")
        + b"h\x01ub"
    )
    read = torch_file.load(saved(tmp_path, {"cfg": config}))
    assert torch_file.attributes(read["cfg"]) == {}


class Runs:
    """What a pickle of it would do where pickles are run."""

    def __init__(self, path):
        self._command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self._command,)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_no_pickled_code_is_run(tmp_path, writer, protocol):
    mark = tmp_path / "was_run"
    code = pickle.dumps(Runs(mark), protocol)
    pickle.loads(code)
    assert mark.exists()  # it does run where it can
    mark.unlink()
    start = 2 if protocol == 2 else 11  # without PROTO and FRAME
    path = saved(tmp_path, {"args": code[start:-1]}, writer)
    assert isinstance(torch_file.load(path)["args"], torch_file.Inert)
    assert not mark.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'x'\nios\nsystem\n",
        b"cos\nsystem\n(S'true'\ntR",
        b"\x82\x01",
        b"(X\x01\x00\x00\x00xios\nsystem\n",
        b"Pname\n",
        b"I1\n",
        b"\xff",
        # An integer of a million digits: printing it takes minutes.
        b"\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20),
        b"N0",
        b"K\x01\x8f",
    ],
    ids=lambda opcodes: repr(opcodes[:10]),
)
def test_opcodes_that_torch_does_not_write_are_refused(tmp_path, opcodes):
    assert "is not one that torch.save writes" in refused(
        saved(tmp_path, {"a": opcodes})
    )


def tensor(
    storage=b"FloatStorage",
    size=4,
    offset=b"K\0",
    shape=b"K\2\x85",
    strides=b"K\1\x85",
    key="0",
):
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + b"("
        + torch_writer.text("storage")
        + b"ctorch\n"
        + storage
        + b"\n"
        + torch_writer.text(key)
        + torch_writer.text("cpu")
        + b"K"
        + bytes([size])
        + b"tQ"
        + offset
        + shape
        + strides
        + b"\x89"
        + DICT
        + b"tR"
    )


STORED = np.zeros(4, np.float32)
BIG = b"\x8a\x06" + b"\0\0\0\0\0\1"


@pytest.mark.parametrize(
    "opcodes, expected",
    [
        (tensor(offset=b"K\3"), "does not fit"),
        (tensor(shape=b"K\5\x85"), "does not fit"),
        (tensor(shape=b"K\2K\2\x86", strides=b"K\3K\3\x86"), "does not fit"),
        # A single number repeated to terabytes.
        (tensor(shape=BIG + b"\x85", strides=b"K\0\x85"), "does not fit"),
        (tensor(shape=b"J\xff\xff\xff\xff\x85"), "not described as torch does"),
        (
            tensor(strides=b"J\xff\xff\xff\xff\x85"),
            "not described as torch does",
        ),
        (tensor(shape=b"]"), "not described as torch does"),
        (tensor(storage=b"QInt8Storage"), "type that is not supported"),
        (tensor(size=5), "described in two ways"),
        (tensor(key="7"), "storage '7' is missing"),
        (tensor(key="../data.pkl"), "is missing"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "required positional"),
        (b"Q", "not described as torch does"),
        (b"h\x63", "99"),
        (b"t", "empty list"),
        (b"N)R", "not callable"),
        (b"}(](K\x01eK\x02u", "neither text nor number"),
        (b"}(K\x01K\x01\x86\x85K\x02u", "neither text nor number"),
        (b"}K\x01\x85\x85Ns", "neither text nor number"),
        (b"X\xff\xff\xff\x7f", "remain"),
        (b"\x8e" + b"\xff" * 6 + b"\0\0", "remain"),
        # A memo of 32 GB.
        (b"Nr\xff\xff\xff\xff", "a value has the number 4294967295"),
        # 2**60 hashes.
        (b"}Nq\1" + b"h\1\x86q\1" * 60 + b"Ns", "neither text nor number"),
        # Attributes of what the loader itself uses.
        (b"cos\nsystem\n}b", "__setstate__"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "__setstate__"),
        (b"ccollections\nOrderedDict\n(NNtb", "__setstate__"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_pickle_that_does_not_add_up_is_refused(tmp_path, opcodes, expected):
    path = saved(tmp_path, {"a": opcodes, "model": STORED})
    message = refused(path)
    assert expected in message


CALL = b"cos\nsystem\nq\2"


@pytest.mark.parametrize(
    "opcodes, expected",
    [
        (b"}(K\1" + b"\x85" * 200000 + b"K\2u", "neither text nor number"),
        (b"N" * 400000, "more than 300000 opcodes"),
        (
            CALL + b"(" + b"N" * 100000 + b"tq\1" + b"h\2h\1R" * 60000,
            "a tuple is too long",
        ),
        (b"X" + struct.pack("<I", 17 << 20) + b"a" * (17 << 20), "bytes"),
        (CALL + b"h\2)R" * 60000 + b"b" * 59999, "odd number"),
        (b"(" * 250000, "MARK"),
    ],
    ids=["nested key", "no end", "calls", "large", "nested states", "marks"],
)
def test_an_endless_or_deep_pickle_costs_little(tmp_path, opcodes, expected):
    path = saved(tmp_path, {"a": opcodes})
    start = time.process_time()
    assert expected in refused(path)
    assert time.process_time() - start < 5


def test_a_damaged_storage_is_refused_when_it_is_read(tmp_path):
    path = saved(tmp_path, {"a": np.full(100, 7.25, np.float32)})
    with open(path, "rb") as stream:
        data = stream.read()
    place = data.index(struct.pack("<f", 7.25) * 2)
    with open(path, "wb") as stream:
        stream.write(data[:place] + b"\1" + data[place + 1 :])
    value = torch_file.load(path)["a"]
    with pytest.raises(errors.UserError, match="checksum"):
        value.read()


@pytest.mark.parametrize("writer", WRITERS)
def test_every_cut_is_refused(tmp_path, writer):
    path = saved(tmp_path, {"a": np.arange(50, dtype=np.float32)}, writer)
    with open(path, "rb") as stream:
        data = stream.read()
    for size in list(range(0, 200)) + list(range(200, len(data), 7)):
        with open(path, "wb") as stream:
            stream.write(data[:size])
        refused(path)


def test_a_cut_archive_says_so(tmp_path):
    path = saved(tmp_path, {"a": STORED})
    with open(path, "rb+") as stream:
        stream.truncate(200)
    assert "the end of its zip archive is missing" in refused(path)


def test_a_compressed_archive_is_refused(tmp_path):
    torch_writer.save(
        tmp_path / "file",
        {"a": np.zeros(1000, np.float32)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert "is compressed" in refused(str(tmp_path / "file"))


def test_a_storage_of_another_size_is_refused(tmp_path):
    with zipfile.ZipFile(saved(tmp_path, {"a": STORED})) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["archive/data/0"] += b"1234"
    with zipfile.ZipFile(str(tmp_path / "file"), "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "has 20 bytes, expected 16" in refused(str(tmp_path / "file"))


def test_another_archive_is_refused(tmp_path):
    with zipfile.ZipFile(str(tmp_path / "file"), "w") as archive:
        archive.writestr("something", "else")
    assert "not have one data.pkl" in refused(str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["archive/data.pkl", "other/data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_pickle_is_refused(tmp_path, name):
    """Which of two is read would depend on the reader."""
    path = saved(tmp_path, {"a": STORED})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, archive.read("archive/data.pkl"))
    assert "not have one data.pkl" in refused(path)


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(pickle.dumps({"a": 1}, 2))
    assert "does not begin as torch.save's files do" in refused(
        str(tmp_path / "file")
    )


@pytest.mark.parametrize("writer", WRITERS)
def test_changed_bytes_give_the_documented_error_or_a_value(tmp_path, writer):
    value = {
        "model": {"w": np.arange(20, dtype=np.float32)},
        "args": argparse.Namespace(a=1, b="x"),
    }
    path = saved(tmp_path, value, writer)
    with open(path, "rb") as stream:
        data = stream.read()
    random = np.random.RandomState(7)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(random.randint(1, 4)):
            changed[random.randint(len(data))] = random.randint(256)
        with open(path, "wb") as stream:
            stream.write(changed)
        try:
            read = torch_file.load(path)
            if isinstance(read, dict) and isinstance(read.get("model"), dict):
                for tensor_read in read["model"].values():
                    if isinstance(tensor_read, lazy_tensors.Tensor):
                        tensor_read.read()
        except errors.UserError:
            pass
