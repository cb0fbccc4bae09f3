# SPDX-License-Identifier: Apache-2.0
"""safetensors files against the safetensors package, and damaged ones."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from common import errors
from weights import lazy_tensors, safetensors_file

HEADER = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [1], "data_offsets": [24, 26]},
}


def file_of(path, header, data=b"\0" * 26, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + data
    )
    return str(path)


def changed(**entry):
    header = json.loads(json.dumps(HEADER))
    header["a"].update(entry)
    return header


def test_the_package_reads_what_is_written_and_the_other_way_round(tmp_path):
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.array([1.5, -2], np.float16),
        "n": np.array(7, np.int64),
    }
    safetensors.numpy.save_file(arrays, str(tmp_path / "package"))
    tensors = safetensors_file.load(str(tmp_path / "package"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read(), array)
    with open(str(tmp_path / "ours"), "wb") as stream:
        safetensors_file.write(stream, tensors)
    again = safetensors.numpy.load_file(str(tmp_path / "ours"))
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_tensors_are_aligned_and_marked_as_pytorch_ones(tmp_path):
    tensors = {
        "a": lazy_tensors.zeros("F16", (3,), ""),
        "b": lazy_tensors.zeros("F32", (2,), ""),
    }
    path = tmp_path / "file"
    with open(str(path), "wb") as stream:
        safetensors_file.write(stream, tensors)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length].decode())
    assert header["__metadata__"] == {"format": "pt"}
    assert header["b"]["data_offsets"] == [0, 8] and length % 8 == 0


def test_a_transposed_view_is_written_in_its_own_order(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = lazy_tensors.Tensor("F32", (2, 3), lambda: array, "x")
    with open(str(tmp_path / "file"), "wb") as stream:
        safetensors_file.write(stream, {"x": lazy_tensors.transposed(tensor)})
    np.testing.assert_array_equal(
        safetensors_file.load(str(tmp_path / "file"))["x"].read(), array.T
    )


@pytest.mark.parametrize(
    "header, options, expected",
    [
        (HEADER, {"length": 1 << 62}, "above the limit"),
        (HEADER, {"length": 1 << 20}, "truncated: expected 1048576 bytes"),
        (HEADER, {"data": b"\0" * 25}, "expected 26 bytes of tensors, got 25"),
        (HEADER, {"data": b"\0" * 27}, "got 27"),
        (b"not json", {}, "not JSON"),
        (b"[1]", {}, "a JSON list"),
        (b"[" * 100000, {}, "not JSON"),
        (b'{"a": ' * 40 + b"1" + b"}" * 40, {}, "nested too deeply"),
        (b'{"a": %s}' % (b"9" * 100000), {}, "100000 digits"),
        (b'{"a": 1, "a": 2}', {}, "a key is repeated"),
        (b'{"a": 1}', {}, "not described by an object"),
        (changed(dtype="F31"), {}, "the type of 'a'"),
        (changed(dtype=["F32"]), {}, "the type of 'a'"),
        (changed(shape=[2, -3]), {}, "not as expected"),
        (changed(shape=[2, True]), {}, "not as expected"),
        (changed(shape=[1 << 40, 1 << 40]), {}, "by its shape"),
        (changed(shape=[2, 4]), {}, "takes 32 bytes by its shape"),
        (changed(data_offsets=[2, 26]), {}, "begins at byte 2"),
        (changed(data_offsets=[0]), {}, "not as expected"),
        (changed(shape=[1], data_offsets=[24, 28]), {}, "begins at byte 24"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_header_that_does_not_add_up_is_refused(
    tmp_path, header, options, expected
):
    path = file_of(tmp_path / "file", header, **options)
    with pytest.raises(errors.UserError) as caught:
        safetensors_file.load(path)
    assert expected in str(caught.value)
    assert path in str(caught.value) and len(str(caught.value)) < 400


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.UserError):
        safetensors_file.load(str(tmp_path / "file"))


def test_a_file_that_shrinks_after_the_check_is_refused(tmp_path):
    path = file_of(tmp_path / "file", HEADER)
    tensors = safetensors_file.load(path)
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(errors.UserError, match="truncated"):
        tensors["b"].read()
