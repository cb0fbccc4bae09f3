# SPDX-License-Identifier: Apache-2.0
"""Records: TensorFlow's bytes, damage, order, manifest."""

import errno
import hashlib
import json
import math
import os
import struct
import time
from concurrent import futures

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors, files, tf_example, tfrecord
from helpers import single_records
from pretraining_data import manifest, records

HEADER = 12  # bytes before a record's data
FRAME = 16  # bytes around a record's data


def static_features(seed=0, length=32, predictions=5):
    random = np.random.RandomState(seed)
    return {
        "input_ids": random.randint(0, 50265, length),
        "input_mask": np.ones(length, np.int64),
        "segment_ids": np.zeros(length, np.int64),
        "masked_lm_positions": np.arange(predictions),
        "masked_lm_ids": random.randint(0, 50265, predictions),
        "masked_lm_weights": np.array([1] * predictions, np.float32),
    }


EXAMPLES = [
    {},
    {"a": np.zeros(0, np.int64)},
    {"a": np.zeros(0, np.float32)},
    {"a": np.array([0, 1, -1, 127, 128, 16383, 16384, 2**63 - 1, -(2**63)])},
    {
        "b": np.array([5]),
        "B": np.array([0.5, np.inf, -0.0], np.float32),
        "a" * 200: np.arange(3),
        "ä": np.array([-5]),
    },
    static_features(),
    {"input_ids": np.random.RandomState(1).randint(0, 50265, 512)},
]


def tf_example_of(features):
    def feature(values):
        if values.dtype == np.float32:
            return tf.train.Feature(
                float_list=tf.train.FloatList(value=values.tolist())
            )
        return tf.train.Feature(
            int64_list=tf.train.Int64List(value=values.tolist())
        )

    return tf.train.Example(
        features=tf.train.Features(
            feature={name: feature(values) for name, values in features.items()}
        )
    )


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tolist() == values.tolist()


def write(path, datas):
    with tfrecord.RecordWriter(str(path)) as writer:
        for data in datas:
            writer.write(data)
    return str(path)


def numbered(path, first, count):
    """A file of records whose input_ids are [number, number, ...]."""
    return write(
        path,
        [
            single_records.encode_example(
                {"input_ids": np.full(3 + number % 7, number)}
            )
            for number in range(first, first + count)
        ],
    )


def number_of(data):
    return int(tf_example.decode_example(data)["input_ids"][0])


# Examples


@pytest.mark.parametrize("features", EXAMPLES)
def test_encoded_bytes_equal_tensorflow(features):
    expected = tf_example_of(features).SerializeToString(deterministic=True)
    assert single_records.encode_example(features) == expected


def test_many_examples_at_once_equal_tensorflows():
    state = np.random.RandomState(0)
    for _ in range(50):
        rows = state.randint(0, 5)
        features = {}
        for name in ("b", "aa", "c" * 200):
            lengths = state.randint(0, state.choice([2, 40, 300]), rows)
            bounds = np.append(0, np.cumsum(lengths))
            values = state.randint(-5, 10 ** state.randint(1, 10), bounds[-1])
            if state.rand() < 0.3:
                values = values.astype(np.float32)
            features[name] = values, bounds
        assert tf_example.encode_examples(features) == [
            tf_example_of(
                {
                    name: values[bounds[row] : bounds[row + 1]]
                    for name, (values, bounds) in features.items()
                }
            ).SerializeToString(deterministic=True)
            for row in range(rows)
        ]


@pytest.mark.parametrize("features", EXAMPLES)
def test_decode_reads_what_tensorflow_writes(features):
    data = tf_example_of(features).SerializeToString()
    assert_same(tf_example.decode_example(data), features)


def test_docstring_example():
    assert single_records.encode_example({"a": np.array([300])}) == (
        b"\n\r\n\x0b\n\x01a\x12\x06\x1a\x04\n\x02\xac\x02"
    )


def field(number, wire, payload):
    prefix = tf_example.encode_varint(number << 3 | wire)
    if wire == 2:
        prefix += tf_example.encode_varint(len(payload))
    return prefix + payload


def wrap(feature, name=b"a"):
    return field(1, 2, field(1, 2, field(1, 2, name) + field(2, 2, feature)))


@pytest.mark.parametrize(
    "data, expected",
    [
        # not packed; then packed and single values mixed
        (wrap(field(3, 2, b"\x08\x05\x08\xac\x02")), [5, 300]),
        (wrap(field(3, 2, b"\x08\x05\n\x02\x06\x07\x08\x08")), [5, 6, 7, 8]),
        (wrap(field(3, 2, b"\n\x01\x05") + field(3, 2, b"\n\x01\x06")), [5, 6]),
        # the value before the key, unknown fields of each wire type around it
        (
            field(9, 0, b"\x01")
            + field(
                1,
                2,
                field(9, 1, b"12345678")
                + field(
                    1,
                    2,
                    field(2, 2, field(3, 2, b"\n\x01\x05")) + field(1, 2, b"a"),
                ),
            )
            + field(7, 5, b"1234")
            + field(8, 2, b"whatever"),
            [5],
        ),
        # the last list and the last entry count
        (wrap(field(2, 2, b"\n\x04abcd") + field(3, 2, b"\n\x01\x05")), [5]),
        (
            wrap(field(3, 2, b"\n\x01\x04")) + wrap(field(3, 2, b"\n\x01\x05")),
            [5],
        ),
        # a number in more bytes than it needs; ten bytes for a negative one
        (wrap(field(3, 2, b"\n\x03\x85\x80\x00")), [5]),
        (wrap(field(3, 2, b"\n\x0a" + b"\xff" * 9 + b"\x01")), [-1]),
    ],
)
def test_decode_reads_as_protobuf_does(data, expected):
    assert (
        list(
            tf.train.Example.FromString(data)
            .features.feature["a"]
            .int64_list.value
        )
        == expected
    )
    assert_same(tf_example.decode_example(data), {"a": np.array(expected)})


def test_decode_reads_floats_that_are_not_packed():
    number = struct.pack("<f", 0.5)
    data = wrap(field(2, 2, b"\x0d" + number + b"\n\x04" + number))
    assert_same(
        tf_example.decode_example(data), {"a": np.array([0.5, 0.5], np.float32)}
    )


def test_decode_reads_bytes_and_leaves_out_empty_features():
    data = wrap(field(1, 2, field(1, 2, b"xy"))) + wrap(b"", b"none")
    features = tf_example.decode_example(data)
    assert features["a"].tolist() == [b"xy"] and list(features) == ["a"]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\n\x05", "cut off"),
        (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"),
        (b"\xff" * 11, "ten bytes"),
        (b"\x80", "cut off"),
        (b"\x03", "field number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (wrap(field(3, 2, b"\n\x02\x05\x85")), "number is cut off"),
        (wrap(field(3, 2, b"\n\x0b" + b"\xff" * 10 + b"\x01")), "ten bytes"),
        (wrap(field(2, 2, b"\n\x03abc")), "float"),
        (wrap(field(3, 2, b"\x0d\x01\x02\x03\x04")), "wire type 5"),
        (wrap(b"", b"\xff"), "UTF-8"),
        (b"\0" * (tf_example.MAX_RECORD_BYTES + 1), "limit"),
    ],
)
def test_garbage_is_a_record_error(data, message):
    with pytest.raises(tf_example.RecordError, match=message):
        tf_example.decode_example(data)


def test_mutated_examples_give_an_answer_or_a_record_error():
    random = np.random.RandomState(0)
    original = single_records.encode_example(static_features())
    refused, start = 0, time.time()
    for _ in range(3000):
        data = bytearray(original)
        for _ in range(random.randint(1, 6)):
            place = random.randint(len(data))
            kind = random.randint(3)
            if kind == 0:
                data[place] = random.randint(256)
            elif kind == 1:
                del data[place : place + random.randint(1, 9)]
            else:
                data[place:place] = random.bytes(random.randint(1, 9))
        try:
            tf_example.decode_example(bytes(data))
        except tf_example.RecordError:
            refused += 1
    assert 1000 < refused < 3000
    assert time.time() - start < 30


# Frames


def test_crc32c_vectors():
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA
    assert tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert tfrecord.crc32c(bytes(range(32))) == 0x46DD794E
    assert tfrecord.crc32c(b"") == 0


def test_file_equals_tensorflows(tmp_path):
    random = np.random.RandomState(0)
    block = tfrecord._CRC_BLOCK
    datas = [
        random.bytes(size)
        for size in list(range(12))
        + list(range(block - 2, block + 6))
        + [3 * block + 1, 100000]
    ]
    with tf.python_io.TFRecordWriter(str(tmp_path / "tf")) as writer:
        for data in datas:
            writer.write(data)
    path = write(tmp_path / "own", datas)
    assert (tmp_path / "tf").read_bytes() == (tmp_path / "own").read_bytes()
    assert list(tf.python_io.tf_record_iterator(path)) == datas
    opened = records.ShardedRecords([str(tmp_path / "tf")])
    assert opened.read(range(len(datas))) == datas


def test_writer_counts_and_hashes(tmp_path):
    with tfrecord.RecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(b"one")
        writer.write(b"three")
        assert os.listdir(str(tmp_path)) == ["a.tfrecord.incomplete"]
    data = (tmp_path / "a.tfrecord").read_bytes()
    assert os.listdir(str(tmp_path)) == ["a.tfrecord"]
    expected = {
        "name": "a.tfrecord",
        "records": 2,
        "bytes": 2 * FRAME + 8,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert len(data) == expected["bytes"]
    assert writer.summary() == expected
    assert manifest.summarize_file(writer.path) == expected


def test_failed_writer_keeps_what_was_there(tmp_path):
    path = write(tmp_path / "a.tfrecord", [b"old"])
    with pytest.raises(RuntimeError):
        with tfrecord.RecordWriter(path) as writer:
            writer.write(b"new")
            raise RuntimeError
    assert os.listdir(str(tmp_path)) == ["a.tfrecord"]
    assert records.ShardedRecords([path]).read([0]) == [b"old"]


def test_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    path = str(tmp_path / "a.tfrecord")
    for attempt in (
        lambda: write(path, [b"data"]),
        lambda: files.write_bytes(path, b"data"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.filename == path
        assert os.listdir(str(tmp_path)) == []


def test_record_above_the_limit_is_not_written(tmp_path):
    with pytest.raises(tf_example.RecordError, match="limit"):
        write(tmp_path / "a", [bytes(tf_example.MAX_RECORD_BYTES + 1)])
    assert os.listdir(str(tmp_path)) == []


# Random access


@pytest.fixture
def three_files(tmp_path):
    return [
        numbered(tmp_path / "a.tfrecord", 0, 10),
        numbered(tmp_path / "b.tfrecord", 10, 0),
        numbered(tmp_path / "c.tfrecord", 10, 25),
    ]


@pytest.mark.parametrize("counts", [None, [10, 0, 25], [10, None, 25]])
def test_random_access(three_files, counts):
    opened = records.ShardedRecords(three_files, counts)
    assert len(opened) == 35 and opened.counts == [10, 0, 25]
    order = np.random.RandomState(0).permutation(35)
    assert [number_of(data) for data in opened.read(order)] == order.tolist()
    examples = opened.read_examples(order)
    assert [int(e["input_ids"][0]) for e in examples] == order.tolist()
    for index in (-1, 35):
        with pytest.raises(IndexError):
            opened.read([index])


def test_a_failed_read_names_the_file(tmp_path):
    path = str(tmp_path / "a.tfrecord")
    numbered(tmp_path / "a.tfrecord", 0, 2)
    opened = records.ShardedRecords([path])
    descriptor = os.open(str(tmp_path), os.O_RDONLY)
    # Reading a directory fails, as reading a damaged disk does.
    os.dup2(descriptor, opened._open(0).fileno())
    os.close(descriptor)
    with pytest.raises(OSError) as caught:
        opened.read([1])
    assert caught.value.filename == path


def test_known_counts_read_nothing_at_the_start(tmp_path):
    opened = records.ShardedRecords([str(tmp_path / "absent")], [5])
    assert len(opened) == 5
    with pytest.raises(OSError) as caught:
        opened.read([0])
    assert caught.value.filename == str(tmp_path / "absent")


def test_files_and_indexes_are_let_go_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MAX_OPEN_FILES", 2)
    monkeypatch.setattr(records, "_MAX_INDEXED_RECORDS", 10)
    paths = [numbered(tmp_path / str(n), 4 * n, 4) for n in range(8)]
    before = len(os.listdir("/proc/self/fd"))
    opened = records.ShardedRecords(paths)
    for _ in range(2):
        assert [number_of(d) for d in opened.read(range(32))] == list(range(32))
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    del opened
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_read_the_same(three_files, monkeypatch):
    monkeypatch.setattr(records, "_MAX_OPEN_FILES", 1)
    opened = records.ShardedRecords(three_files, [10, 0, 25])

    def work(seed):
        indices = np.random.RandomState(seed).randint(0, 35, 200)
        found = [number_of(opened.read([index])[0]) for index in indices]
        return found == indices.tolist()

    with futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4


def start_of(path, number):
    """The byte at which a record of `numbered` starts."""
    with open(path, "rb") as stream:
        return int(tfrecord.index_frames(stream.fileno(), path)[0][number])


def change(path, place, data=None):
    """Overwrites one byte, or the end of the file with `data` None."""
    with open(path, "r+b") as stream:
        if data is None:
            stream.truncate(place)
        else:
            stream.seek(place)
            stream.write(data)


DAMAGES = [
    (
        "data checksum",
        lambda path, at: change(path, at + HEADER + 3, b"\xff"),
        "checksum of the data",
    ),
    (
        "length",
        lambda path, at: change(path, at, b"\xff"),
        "checksum of the length",
    ),
    (
        "huge length",
        lambda path, at: change(
            path, at, struct.pack("<QI", 2**40, tfrecord.length_crc(2**40))
        ),
        "limit",
    ),
    (
        "long length",
        lambda path, at: change(
            path, at, struct.pack("<QI", 2**19, tfrecord.length_crc(2**19))
        ),
        "truncated",
    ),
    ("cut data", lambda path, at: change(path, at + HEADER + 2), "truncated"),
    ("cut header", lambda path, at: change(path, at + 5), "truncated"),
]


@pytest.mark.parametrize(
    "damage, message", [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES]
)
@pytest.mark.parametrize("counts", [None, [10, 0, 25]])
def test_damage_names_file_record_and_byte(
    three_files, counts, damage, message
):
    at = start_of(three_files[2], 7)
    damage(three_files[2], at)
    with pytest.raises(tf_example.RecordError) as caught:
        opened = records.ShardedRecords(three_files, counts)
        opened.read(range(10))
        opened.read([17])
    assert message in str(caught.value)
    assert f"{three_files[2]!r}, record 7 (counted from 0) at byte {at}" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "damage", [d[1] for d in DAMAGES], ids=[d[0] for d in DAMAGES]
)
def test_damage_is_skipped_and_counted(three_files, damage):
    damage(three_files[2], start_of(three_files[2], 7))
    opened = records.ShardedRecords(three_files, [10, 0, 25], skip_corrupt=True)
    found = [number_of(data) for data in opened.read(range(35))]
    lost = 1 if damage is DAMAGES[0][1] else 18
    good = [n for n in range(35) if not 17 <= n < 17 + lost]
    assert opened.skipped == lost
    assert [found[n] for n in good] == good
    assert set(found) == set(good)
    again = records.ShardedRecords(three_files, [10, 0, 25], skip_corrupt=True)
    assert [number_of(d) for d in again.read(range(34, -1, -1))] == found[::-1]


def test_damage_without_known_counts_is_counted_once(three_files):
    change(three_files[2], start_of(three_files[2], 7) + 5)
    opened = records.ShardedRecords(three_files, skip_corrupt=True)
    assert opened.counts == [10, 0, 7] and opened.skipped == 1


def test_record_that_is_no_example_is_damage(tmp_path):
    path = write(
        tmp_path / "a",
        [
            single_records.encode_example({"input_ids": np.array([0])}),
            b"\n\x05",
        ],
    )
    with pytest.raises(tf_example.RecordError, match="record 1 .* at byte"):
        records.ShardedRecords([path]).read_examples([0, 1])
    opened = records.ShardedRecords([path], skip_corrupt=True)
    assert [int(e["input_ids"][0]) for e in opened.read_examples([0, 1])] == [
        0,
        0,
    ]
    assert opened.skipped == 1


def test_nothing_readable_is_an_error(tmp_path):
    path = write(tmp_path / "a", [b"\n\x05"] * 3)
    opened = records.ShardedRecords([path], skip_corrupt=True)
    with pytest.raises(tf_example.RecordError, match="none of .* can be read"):
        opened.read_examples([0])


@pytest.mark.parametrize("counts", [[10, 0, 24], [10, 0, 26], [10, 1, 25]])
def test_other_number_of_records_than_the_manifest(three_files, counts):
    opened = records.ShardedRecords(three_files, counts)
    with pytest.raises(tf_example.RecordError, match="the file ends here"):
        opened.read(range(sum(counts)))


def test_file_that_shrinks_while_it_is_read(three_files):
    opened = records.ShardedRecords(three_files)
    opened.read([30])
    change(three_files[2], start_of(three_files[2], 20) + 5)
    with pytest.raises(tf_example.RecordError, match="record 20 .*truncated"):
        opened.read([30])


def test_gzip_file_says_so(tmp_path):
    (tmp_path / "a").write_bytes(b"\x1f\x8b" + bytes(50))
    with pytest.raises(tf_example.RecordError, match="gzip"):
        records.ShardedRecords([str(tmp_path / "a")])


def test_sound_frame_above_the_limit_is_refused(tmp_path):
    size = tf_example.MAX_RECORD_BYTES + 1
    with open(str(tmp_path / "a"), "wb") as stream:
        stream.write(struct.pack("<QI", size, tfrecord.length_crc(size)))
        stream.truncate(size + FRAME)
    with pytest.raises(tf_example.RecordError, match="above the limit"):
        records.ShardedRecords([str(tmp_path / "a")])


def test_random_bytes_are_refused(tmp_path):
    random = np.random.RandomState(0)
    for size in (1, 11, 12, 13, 5000):
        (tmp_path / "a").write_bytes(random.bytes(size))
        with pytest.raises(
            tf_example.RecordError, match="record 0 .* at byte 0"
        ):
            records.ShardedRecords([str(tmp_path / "a")])


# Expectations

STATIC_LENGTHS = {
    "input_ids": (32, 32),
    "input_mask": (32, 32),
    "segment_ids": (32, 32),
    "masked_lm_positions": (5, 5),
    "masked_lm_ids": (5, 5),
    "masked_lm_weights": (5, 5),
}


def test_record_as_expected_passes():
    records.check_example(static_features(), STATIC_LENGTHS, 50265)
    records.check_example({"input_ids": np.arange(9)}, {"input_ids": (1, 9)}, 9)
    assert sorted(STATIC_LENGTHS) == sorted(records.STATIC_FEATURES)


@pytest.mark.parametrize(
    "changes, lengths, message",
    [
        ({}, {"input_ids": (1, 32)}, "found a static record"),
        (
            {"input_ids": np.arange(31)},
            STATIC_LENGTHS,
            "input_ids has length 31, expected 32; change --max_seq_length",
        ),
        (
            {"masked_lm_ids": np.arange(6)},
            STATIC_LENGTHS,
            "length 6, expected 5; change --max_predictions_per_seq",
        ),
        (
            {"masked_lm_positions": np.arange(28, 33)},
            STATIC_LENGTHS,
            "masked_lm_positions ranges from 28 to 32, expected 0 to 31",
        ),
        (
            {"masked_lm_ids": np.array([0, 1, 2, 3, 50265])},
            STATIC_LENGTHS,
            "masked_lm_ids ranges from 0 to 50265",
        ),
        ({"input_ids": np.arange(-1, 31)}, STATIC_LENGTHS, "ranges from -1"),
        (
            {"masked_lm_weights": np.arange(5)},
            STATIC_LENGTHS,
            "has the type int64, expected float32",
        ),
        (
            {"input_mask": np.full(32, 7)},
            STATIC_LENGTHS,
            "input_mask ranges from 7 to 7, expected 0 to 1",
        ),
        (
            {"segment_ids": np.array([-1] + [0] * 31)},
            STATIC_LENGTHS,
            "segment_ids ranges from -1 to 0, expected 0 to 0",
        ),
        (
            {"input_mask": np.full(32, 1 << 40)},
            STATIC_LENGTHS,
            "input_mask ranges from 1099511627776",
        ),
    ]
    + [
        (
            {"masked_lm_weights": np.full(5, value, np.float32)},
            STATIC_LENGTHS,
            "masked_lm_weights ranges from .* expected 0 to 1",
        )
        for value in (math.nan, 1e30, -1, math.inf)
    ],
)
def test_record_of_another_shape(changes, lengths, message):
    with pytest.raises(errors.UserError, match=message):
        records.check_example(
            dict(static_features(), **changes), lengths, 50265
        )


def test_missing_feature_and_long_dynamic_record(tmp_path):
    path = write(
        tmp_path / "a",
        [single_records.encode_example({"input_ids": np.arange(9)})],
    )
    opened = records.ShardedRecords([path], skip_corrupt=True)
    with pytest.raises(errors.UserError) as caught:
        opened.read_examples([0], {"input_ids": (1, 8)})
    assert str(caught.value).startswith(
        f"{path!r}, record 0 (counted from 0): input_ids has length 9, "
        "expected 1 to 8"
    )
    with pytest.raises(
        errors.UserError,
        match="found the features input_ids, expected .*--masking=static",
    ):
        opened.read_examples([0], STATIC_LENGTHS)
    assert opened.skipped == 0


# Order


@pytest.mark.parametrize(
    "counts, window",
    [([7], 3), ([5, 0, 9, 1], 4), ([5, 0, 9, 1], 100), ([1] * 20, 1)],
)
def test_each_epoch_feeds_each_record_once(counts, window):
    order = records.RecordOrder(counts, 3, window)
    total = sum(counts)
    assert len(order) == total
    epochs, indices = order.indices(0, 3 * total)
    assert epochs.tolist() == [0] * total + [1] * total + [2] * total
    for epoch in range(3):
        fed = indices[epoch * total : (epoch + 1) * total]
        assert sorted(fed.tolist()) == list(range(total))


def test_any_position_is_found_at_once():
    order = records.RecordOrder([50, 30, 40], 3, 32)
    epochs, indices = order.indices(0, 600)
    for first in (599, 0, 350, 119, 120, 31):
        number = min(40, 600 - first)
        some = records.RecordOrder([50, 30, 40], 3, 32).indices(first, number)
        assert some[0].tolist() == epochs[first : first + number].tolist()
        assert some[1].tolist() == indices[first : first + number].tolist()
    far = order.indices(10**15, 2)
    assert far[0].tolist() == [10**15 // 120] * 2


def test_order_depends_on_seed_and_epoch():
    orders = [
        records.RecordOrder([100], seed).indices(0, 200)[1].tolist()
        for seed in (1, 2)
    ]
    parts = [
        order[start : start + 100] for order in orders for start in (0, 100)
    ]
    assert len(set(map(tuple, parts))) == 4
    assert np.mean(np.diff(parts[0]) == 1) < 0.1


def test_window_keeps_to_few_files():
    order = records.RecordOrder([10] * 30, 3, 20)
    fed = order.indices(0, 300)[1].reshape(15, 20) // 10
    assert all(len(set(row)) == 2 for row in fed.tolist())
    assert sorted(fed[:, 0].tolist()) != fed[:, 0].tolist()


def test_order_is_the_same_everywhere():
    # Must never change, since a resumed run goes on in the order of the run
    # that it continues.
    order = records.RecordOrder([4, 3, 5], 12345, 5)
    assert order.indices(9, 6)[1].tolist() == [8, 10, 11, 4, 6, 5]


def test_order_is_fast_once_a_window_is_known():
    order = records.RecordOrder([1000] * 300, 3)
    order.indices(0, 32)
    times = []
    for step in range(100):
        start = time.perf_counter()
        order.indices(32 * step, 32)
        times.append(time.perf_counter() - start)
    assert sorted(times)[50] < 5e-4


# Inputs and manifest


def manifest_of(shards, **changes):
    settings = dict(
        masking="dynamic",
        packing="full_sentences",
        max_seq_length=128,
        max_predictions_per_seq=20,
        masked_lm_prob=0.15,
        vocab_size=11,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        mask_id=10,
        vocab_sha256="0" * 64,
        word_starts=manifest.encode_word_starts(np.arange(11) % 3 == 0),
        shards=shards,
    )
    settings.update(changes)
    return settings


def build(directory, names, **changes):
    """A directory of one-record files with their manifest."""
    directory.mkdir()
    shards = [
        manifest.summarize_file(numbered(directory / name, 0, 1 + place))
        for place, name in enumerate(names)
    ]
    single_records.write_manifest(
        str(directory), manifest_of(shards, **changes)
    )
    return str(directory)


def test_expand_inputs(tmp_path):
    folder = build(tmp_path / "d", ["b.tfrecord", "a.tfrecord"])
    for name in ("x.txt", ".c.tfrecord", "c.tfrecord.incomplete"):
        (tmp_path / "d" / name).write_bytes(b"")
    single = numbered(tmp_path / "one,two", 0, 1)
    a, b = folder + "/a.tfrecord", folder + "/b.tfrecord"
    assert records.expand_inputs(folder) == [a, b]
    assert records.expand_inputs(b + ", " + folder + "/,") == [
        b,
        folder + "/a.tfrecord",
    ]
    assert records.expand_inputs(folder + "/[ab].tf*") == [a, b]
    assert records.expand_inputs(single) == [single]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no file of records was given"),
        (None, "no file"),
        (" , ", "no file"),
        ("{0}/absent", "absent' matches no file of records"),
        ("{0}/full,{0}/*.xyz", "xyz' matches no file"),
        ("{0}/empty", "empty' matches no file of records"),
        ("{0}/partial", "lists 'a.tfrecord', which is missing"),
    ],
)
def test_inputs_that_name_nothing(tmp_path, text, message):
    build(tmp_path / "full", ["a.tfrecord"])
    build(tmp_path / "partial", ["a.tfrecord", "b.tfrecord"])
    (tmp_path / "partial" / "a.tfrecord").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UserError, match=message):
        records.expand_inputs(text and text.format(tmp_path))


def test_a_dangling_link_among_the_files_is_an_error(tmp_path):
    folder = build(tmp_path / "d", ["a.tfrecord"])
    (tmp_path / "d" / "b.tfrecord").symlink_to(tmp_path / "gone.tfrecord")
    for text in (folder, folder + "/*.tfrecord"):
        with pytest.raises(errors.UserError, match="b.tfrecord' is a link to"):
            records.expand_inputs(text)


def test_manifest_round_trip(tmp_path):
    folder = build(tmp_path / "d", ["a.tfrecord", "b.tfrecord"])
    paths = records.expand_inputs(folder)
    found = manifest.read_manifest(paths)
    assert found["format_version"] == 1
    assert [s["path"] for s in found["shards"]] == paths
    assert manifest.counts_of(paths[::-1], found) == [2, 1]
    assert manifest.counts_of([str(tmp_path)], found) == [None]
    assert manifest.counts_of(paths, None) == [None, None]
    assert manifest.decode_word_starts(found["word_starts"], 11).tolist() == (
        (np.arange(11) % 3 == 0).tolist()
    )
    assert sorted(os.listdir(folder)) == [
        "a.tfrecord",
        "b.tfrecord",
        "manifest.json",
    ]


def test_no_manifest_is_none(tmp_path):
    path = numbered(tmp_path / "a.tfrecord", 0, 1)
    assert manifest.load_manifest(str(tmp_path)) is None
    assert manifest.read_manifest([path]) is None
    # One that speaks of other files says nothing of this one.
    folder = build(tmp_path / "d", ["b.tfrecord"])
    assert (
        manifest.read_manifest([numbered(tmp_path / "d" / "x", 0, 1)]) is None
    )
    assert manifest.read_manifest([folder + "/b.tfrecord"]) is not None


def test_manifests_of_two_directories(tmp_path):
    paths = records.expand_inputs(
        ",".join(build(tmp_path / name, ["a.tfrecord"]) for name in "de")
    )
    found = manifest.read_manifest(paths)
    assert [s["path"] for s in found["shards"]] == paths
    other = build(tmp_path / "f", ["a.tfrecord"], max_seq_length=64)
    with pytest.raises(
        errors.UserError, match="max_seq_length is 128 in .* and 64 in"
    ):
        manifest.read_manifest(paths + [other + "/a.tfrecord"])


SHARD = {"name": "a", "records": 1, "bytes": 20, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 2}, "format_version 2, expected 1"),
        ({"format_version": True}, "format_version True"),
        ({"masking": "none"}, "masking 'none', expected static or dynamic"),
        ({"masking": []}, "masking \\[\\]"),
        ({"max_seq_length": -1}, "max_seq_length -1, expected a whole number"),
        ({"max_seq_length": 1.5}, "max_seq_length 1.5"),
        ({"max_seq_length": True}, "max_seq_length True"),
        ({"masked_lm_prob": 2}, "masked_lm_prob 2"),
        ({"masked_lm_prob": float("nan")}, "masked_lm_prob nan"),
        ({"vocab_sha256": "xyz"}, "vocab_sha256 'xyz'"),
        ({"mask_id": 11}, "mask_id 11, expected an id below vocab_size 11"),
        ({"word_starts": "AA"}, "word_starts .*base64 of 11 bits"),
        ({"word_starts": "A" * 1000}, "word_starts"),
        ({"do_whole_word_mask": 1}, "do_whole_word_mask 1"),
        ({"shards": {}}, "shards {}, expected a list"),
        ({"shards": [1]}, "shard 1, expected a JSON object"),
        ({"shards": [SHARD, SHARD]}, "shard 'a' twice"),
        ({"shards": [dict(SHARD, records="5")]}, "records '5' of shard 'a'"),
        ({"shards": [dict(SHARD, records=2**63)]}, "records 9223.* of shard"),
        ({"shards": [dict(SHARD, sha256=None)]}, "sha256 None of shard"),
    ]
    + [
        ({"shards": [dict(SHARD, name=name)]}, "without a directory")
        for name in (
            "../a",
            "/etc/passwd",
            "..",
            "",
            "a/b",
            "a\\b",
            "a\0b",
            None,
            "\ud800",
        )
    ],
)
def test_malformed_manifest(tmp_path, changes, message):
    content = manifest_of([SHARD], format_version=1)
    content.update(changes)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=message):
        manifest.load_manifest(str(tmp_path))


@pytest.mark.parametrize("key", ["masking", "vocab_size", "shards", "mask_id"])
def test_incomplete_manifest(tmp_path, key):
    content = manifest_of([SHARD], format_version=1)
    del content[key]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=f"{key} None, expected"):
        manifest.load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100000,
        b'{"a":' * 50000,
        b"9" * 1000000,
        b'{"format_version": ' + b"1" * 100000 + b"}",
        b'{"format_version": 1, "shards": ' + b"[" * 300 + b"]" * 300 + b"}",
        b" " * (manifest._MAX_BYTES + 1),
    ],
    ids=range(11),
)
def test_hostile_manifest_is_refused_quickly(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    start = time.time()
    with pytest.raises(errors.UserError) as caught:
        manifest.load_manifest(str(tmp_path))
    assert time.time() - start < 2
    assert len(str(caught.value)) < 1000


def test_long_number_in_a_manifest_is_not_converted(tmp_path):
    (tmp_path / "manifest.json").write_text(f'{{"random_seed": {"7" * 30}}}')
    with pytest.raises(errors.UserError, match="an integer of 30 digits"):
        manifest.load_manifest(str(tmp_path))


@pytest.mark.parametrize("given", ["", "a.tfrecord", "*.tfrecord"])
@pytest.mark.parametrize(
    "progress", ["progress.json", "a.tfrecord.progress.json"]
)
def test_records_of_an_interrupted_build_are_refused(tmp_path, given, progress):
    path = write(tmp_path / "a.tfrecord", [b"x"])
    text = str(tmp_path / given) if given else str(tmp_path)
    assert records.expand_inputs(text) == [path]  # no manifest: no error
    (tmp_path / progress).write_text("{}")
    with pytest.raises(
        errors.UserError,
        match=f"interrupted: .*{progress}.* finish it by the same "
        "create_pretraining_data.py command",
    ):
        records.expand_inputs(text)
    # A build ends by writing the one and then removing the other.
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            manifest_of([dict(SHARD, name="a.tfrecord")], format_version=1)
        )
    )
    assert records.expand_inputs(text) == [path]


def test_malformed_manifest_is_not_written(tmp_path):
    with pytest.raises(errors.UserError, match="without a directory"):
        single_records.write_manifest(
            str(tmp_path), manifest_of([dict(SHARD, name="../a")])
        )
    assert os.listdir(str(tmp_path)) == []
