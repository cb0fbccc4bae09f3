# SPDX-License-Identifier: Apache-2.0
"""TensorFlow checkpoints against TensorFlow itself, and damaged ones."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors
from helpers import tf_index
from weights import lazy_tensors, tf_checkpoint


def save(prefix, arrays):
    """Lets TensorFlow write a checkpoint."""
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=list(arrays),
                shape_and_slices=[""] * len(arrays),
                tensors=[tf.constant(array) for array in arrays.values()],
            )
        )
    return prefix


def saved(directory, number):
    """The prefix of a checkpoint of a few arrays."""
    return save(str(directory / "model.ckpt"), arrays_of(number))


def write_index(directory, data):
    """Writes an index; the prefix of its checkpoint."""
    (directory / "model.ckpt.index").write_bytes(data)
    return str(directory / "model.ckpt")


def refused(prefix):
    """The message of the UserError that a checkpoint gives."""
    with pytest.raises(errors.UserError) as caught:
        tf_checkpoint.load(prefix)
    return str(caught.value)


def arrays_of(number):
    random = np.random.RandomState(3)
    return {
        f"layer_{i}/kernel": random.rand(3, i % 5 + 1).astype(np.float32)
        for i in range(number)
    }


@pytest.mark.parametrize("number", [1, 2, 3000])
def test_tensorflow_reads_what_is_written(tmp_path, number):
    arrays = arrays_of(number)
    tensors = {
        name: lazy_tensors.Tensor("F32", array.shape, lambda a=array: a, "")
        for name, array in arrays.items()
    }
    with open(str(tmp_path / "m.data-00000-of-00001"), "wb") as stream:
        index = tf_checkpoint.write_data(stream, tensors)
    (tmp_path / "m.index").write_bytes(index)
    prefix = str(tmp_path / "m")
    reader = tf.train.load_checkpoint(prefix)
    assert set(reader.get_variable_to_shape_map()) == set(arrays)
    for name in list(arrays)[::37]:
        np.testing.assert_array_equal(reader.get_tensor(name), arrays[name])


def test_what_tensorflow_writes_is_read(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    with tf.Graph().as_default():
        kernel = tf.get_variable("a/kernel", [3, 4])
        half = tf.get_variable("half", [2], tf.float16)
        tf.get_variable("global_step", [], tf.int64, tf.ones_initializer())
        tf.get_variable("text", initializer=tf.constant(["x", "y"]))
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, prefix)
            expected = session.run([kernel, half])
    tensors = tf_checkpoint.load(prefix)
    assert len(tensors) == 4
    np.testing.assert_array_equal(tensors["a/kernel"].read(), expected[0])
    np.testing.assert_array_equal(tensors["half"].read(), expected[1])
    assert tensors["global_step"].shape == ()
    assert tensors["global_step"].read() == 1
    assert tensors["text"].dtype == "STRING"


def test_an_index_of_several_blocks_is_read(tmp_path):
    names = [f"{'long_name' * 20}/{i:04d}" for i in range(3000)]
    prefix = save(
        str(tmp_path / "model.ckpt"),
        {name: np.float32([5, 5]) for name in names},
    )
    tensors = tf_checkpoint.load(prefix)
    assert list(tensors) == names
    np.testing.assert_array_equal(tensors[names[-1]].read(), [5, 5])


def test_slices_are_refused_by_name(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    with tf.Graph().as_default():
        tf.get_variable(
            "sliced", [4, 2], partitioner=tf.fixed_size_partitioner(2)
        )
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, prefix)
    assert "'sliced' is stored in slices" in refused(prefix)


def test_several_data_files_are_read(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    parts = [
        save(f"{prefix}_part{part}", {f"v{part}": np.float32([part] * 2)})
        for part in range(3)
    ]
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=parts, destination_prefix=prefix
            )
        )
    assert os.path.isfile(tf_checkpoint.data_file(prefix, 2, 3))
    tensors = tf_checkpoint.load(prefix)
    np.testing.assert_array_equal(tensors["v2"].read(), [2, 2])


def test_a_changed_weight_is_noticed_by_name(tmp_path):
    prefix = saved(tmp_path, 3)
    with open(prefix + ".data-00000-of-00001", "rb+") as stream:
        stream.seek(1)
        stream.write(b"\x7f")
    with pytest.raises(
        errors.UserError, match="checksum of 'layer_0/kernel' does not match"
    ):
        tf_checkpoint.load(prefix)["layer_0/kernel"].read()


def test_a_cut_data_file_is_noticed_before_reading(tmp_path):
    prefix = saved(tmp_path, 3)
    with open(prefix + ".data-00000-of-00001", "rb+") as stream:
        stream.truncate(20)
    assert "has 20 bytes, but 'layer_1/kernel' ends at 36" in refused(prefix)


def test_a_missing_data_file_is_named(tmp_path):
    prefix = saved(tmp_path, 3)
    os.remove(prefix + ".data-00000-of-00001")
    with pytest.raises(OSError) as caught:
        tf_checkpoint.load(prefix)
    assert caught.value.filename == prefix + ".data-00000-of-00001"


def test_every_cut_of_the_index_is_refused(tmp_path):
    data = open(saved(tmp_path, 4) + ".index", "rb").read()
    for size in range(len(data)):
        refused(write_index(tmp_path, data[:size]))


def test_every_changed_byte_of_the_index_is_noticed_or_harmless(tmp_path):
    data = open(saved(tmp_path, 4) + ".index", "rb").read()
    noticed = 0
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        prefix = write_index(tmp_path, changed)
        try:
            assert set(tf_checkpoint.load(prefix)) == set(arrays_of(4))
        except errors.UserError:
            noticed += 1
    # The footer's padding and the empty block of meta data are not read.
    assert noticed > len(data) - 64


@pytest.mark.parametrize(
    "entry, expected",
    [
        (tf_index.entry(dtype=1, size=9), "size or file of 'x'"),
        (tf_index.entry(dtype=1, size=8, shard_id=4), "size or file of 'x'"),
        (tf_index.entry(dtype=99, size=8), "type 99"),
        (tf_index.entry(dtype=1, size=8, offset=1 << 62), "ends at"),
        (tf_index.entry(dtype=1, size=8, dims=[-1]), "shape of 'x'"),
        (tf_index.entry(dtype=1, size=8, dims=[1 << 60] * 2), "shape of 'x'"),
        # The shape is cut off, a number, and the type is a text.
        (b"\x08\x01\x12\x01\xff\x28\x08", "not a complete TensorFlow"),
        (b"\x08\x01\x10\x05\x28\x08", "not a complete TensorFlow"),
        (b"\x0a\x02ab\x28\x08", "not expected"),
    ],
)
def test_an_entry_that_does_not_add_up_is_refused(tmp_path, entry, expected):
    prefix = saved(tmp_path, 1)
    sound = tf_index.entry(dtype=1, size=8, crc32c=5)
    for value in (sound, entry):
        write_index(
            tmp_path, tf_index.table([[(b"", tf_index.HEADER), (b"x", value)]])
        )
        if value == sound:
            assert tf_checkpoint.load(prefix)["x"].shape == (2,)
    assert expected in refused(prefix)


@pytest.mark.parametrize(
    "blocks, times, expected",
    [
        # One block listed a million times would take hours to read.
        ([[(b"", tf_index.HEADER)]], 1000, "its blocks overlap"),
        ([[(b"", tf_index.HEADER), (b"b", b""), (b"a", b"")]], 1, "not sorted"),
        ([[(b"a", b"")]], 1, "no header"),
        ([[(b"", b"\x08\x00")]], 1, "number of files is wrong"),
        ([[(b"", b"\x08\x01\x10\x01")]], 1, "big-endian"),
    ],
)
def test_a_table_that_does_not_add_up_is_refused(
    tmp_path, blocks, times, expected
):
    prefix = write_index(tmp_path, tf_index.table(blocks, times))
    assert expected in refused(prefix)
