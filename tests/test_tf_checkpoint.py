# SPDX-License-Identifier: Apache-2.0
"""TensorFlow checkpoints against TensorFlow itself, and damaged ones."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors, tf_example
from weights import lazy_tensors, tf_checkpoint


def tensor(array, dtype="F32"):
    return lazy_tensors.Tensor(dtype, array.shape, lambda: array, "")


def written(directory, arrays):
    """The prefix of a checkpoint of float32 arrays."""
    prefix = str(directory / "model.ckpt")
    with open(tf_checkpoint.data_file(prefix), "wb") as stream:
        index = tf_checkpoint.write_data(
            stream, {name: tensor(array) for name, array in arrays.items()}
        )
    with open(tf_checkpoint.index_file(prefix), "wb") as stream:
        stream.write(index)
    return prefix


def arrays_of(number):
    random = np.random.RandomState(3)
    return {
        f"layer_{i}/kernel": random.rand(3, i % 5 + 1).astype(np.float32)
        for i in range(number)
    }


@pytest.mark.parametrize("number", [1, 2, 3000])
def test_tensorflow_reads_what_is_written(tmp_path, number):
    arrays = arrays_of(number)
    prefix = written(tmp_path, arrays)
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
    prefix, number = str(tmp_path / "model.ckpt"), 3000
    names = [f"{'long_name' * 20}/{i:04d}" for i in range(number)]
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * number,
                tensors=[tf.fill([2], 5.0)] * number,
            )
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
    with pytest.raises(errors.UserError, match="'sliced' is stored in slices"):
        tf_checkpoint.load(prefix)


def test_several_data_files_are_read(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    parts = []
    with tf.Graph().as_default(), tf.Session() as session:
        for part in range(3):
            parts.append(f"{prefix}_part{part}")
            session.run(
                tf.raw_ops.SaveV2(
                    prefix=parts[-1],
                    tensor_names=[f"v{part}"],
                    shape_and_slices=[""],
                    tensors=[tf.fill([2], float(part))],
                )
            )
        session.run(
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=parts, destination_prefix=prefix
            )
        )
    assert os.path.isfile(tf_checkpoint.data_file(prefix, 2, 3))
    tensors = tf_checkpoint.load(prefix)
    np.testing.assert_array_equal(tensors["v2"].read(), [2, 2])


def test_a_changed_weight_is_noticed_by_name(tmp_path):
    prefix = written(tmp_path, arrays_of(3))
    path = tf_checkpoint.data_file(prefix)
    with open(path, "rb+") as stream:
        stream.seek(1)
        stream.write(b"\x7f")
    with pytest.raises(
        errors.UserError, match="checksum of 'layer_0/kernel' does not match"
    ):
        tf_checkpoint.load(prefix)["layer_0/kernel"].read()


def test_a_cut_data_file_is_noticed_before_reading(tmp_path):
    prefix = written(tmp_path, arrays_of(3))
    with open(tf_checkpoint.data_file(prefix), "rb+") as stream:
        stream.truncate(20)
    with pytest.raises(errors.UserError, match="has 20 bytes, but"):
        tf_checkpoint.load(prefix)


def test_a_missing_data_file_is_named(tmp_path):
    prefix = written(tmp_path, arrays_of(3))
    os.remove(tf_checkpoint.data_file(prefix))
    with pytest.raises(OSError) as caught:
        tf_checkpoint.load(prefix)
    assert caught.value.filename == tf_checkpoint.data_file(prefix)


def test_every_cut_of_the_index_is_refused(tmp_path):
    prefix = written(tmp_path, arrays_of(4))
    path = tf_checkpoint.index_file(prefix)
    with open(path, "rb") as stream:
        data = stream.read()
    for size in range(len(data)):
        with open(path, "wb") as stream:
            stream.write(data[:size])
        with pytest.raises(errors.UserError):
            tf_checkpoint.load(prefix)


def test_every_changed_byte_of_the_index_is_noticed_or_harmless(tmp_path):
    arrays = arrays_of(4)
    prefix = written(tmp_path, arrays)
    path = tf_checkpoint.index_file(prefix)
    with open(path, "rb") as stream:
        data = stream.read()
    noticed = 0
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        with open(path, "wb") as stream:
            stream.write(changed)
        try:
            tensors = tf_checkpoint.load(prefix)
        except errors.UserError:
            noticed += 1
        else:
            assert set(tensors) == set(arrays)
    # The footer's padding and the empty block of meta data are not read.
    assert noticed > len(data) - 64


def with_entry(prefix, name, fields):
    """Writes an index with one entry, checksums and all."""
    entry = b"".join(
        tf_checkpoint._field(number, value) for number, value in fields
    )
    table = tf_checkpoint._table(
        [(b"", tf_checkpoint._field(1, 1)), (name, entry)]
    )
    with open(tf_checkpoint.index_file(prefix), "wb") as stream:
        stream.write(table)


SHAPE = tf_checkpoint._field(2, tf_checkpoint._field(1, 2))


@pytest.mark.parametrize(
    "fields, expected",
    [
        ([(1, 1), (2, SHAPE), (4, 0), (5, 9)], "are not possible"),
        ([(1, 1), (2, SHAPE), (3, 4), (5, 8)], "are not possible"),
        ([(1, 99), (2, SHAPE), (5, 8)], "type 99"),
        ([(1, 1), (2, SHAPE), (4, 1 << 63), (5, 8)], "ends at"),
        (
            [
                (1, 1),
                (
                    2,
                    tf_checkpoint._field(
                        2, tf_checkpoint._field(1, (1 << 64) - 1)
                    ),
                ),
                (5, 8),
            ],
            "shape of 'x' is not possible",
        ),
        (
            [(1, 1), (2, b"\xff"), (5, 8)],
            "not a complete TensorFlow checkpoint",
        ),
        ([(1, 1), (2, 5), (5, 8)], "not a complete TensorFlow checkpoint"),
        ([(1, b"ab"), (2, SHAPE), (5, 8)], "not expected"),
    ],
)
def test_an_entry_that_does_not_add_up_is_refused(tmp_path, fields, expected):
    prefix = written(tmp_path, arrays_of(1))
    with_entry(prefix, b"x", fields)
    with pytest.raises(errors.UserError) as caught:
        tf_checkpoint.load(prefix)
    assert expected in str(caught.value)


def test_blocks_that_overlap_are_refused(tmp_path):
    # Listing one block a million times would take hours to read.
    prefix = written(tmp_path, {})
    header = tf_checkpoint._block([(b"", tf_checkpoint._field(1, 1))])
    result = bytearray()

    def add(block):
        handle = tf_example.encode_varint(
            len(result)
        ) + tf_example.encode_varint(len(block))
        result.extend(
            block
            + b"\0"
            + tf_checkpoint.struct.pack(
                "<I", tf_checkpoint.tfrecord.masked_crc32c(block + b"\0")
            )
        )
        return handle

    handle = add(header)
    footer = add(tf_checkpoint._block([])) + add(
        tf_checkpoint._block([(b"%06d" % i, handle) for i in range(1000)])
    )
    with open(tf_checkpoint.index_file(prefix), "wb") as stream:
        stream.write(
            bytes(result)
            + footer.ljust(40, b"\0")
            + tf_checkpoint.struct.pack("<Q", tf_checkpoint._MAGIC)
        )
    with pytest.raises(errors.UserError, match="its blocks overlap"):
        tf_checkpoint.load(prefix)
