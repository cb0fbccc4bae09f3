# SPDX-License-Identifier: Apache-2.0
"""Batches: functions of their step, shared by ranks, filled, checked."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors
from helpers.masked_lm_records import (
    LENGTH,
    MASK,
    VOCAB,
    sequences_of,
    source_of,
    static_example,
    write_records,
)
from pretraining_data import manifest as manifests
from pretraining_data import records
from training import input_pipeline, masked_lm_batches, tensorflow_errors


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("dynamic"))


def training_batches(source, batch_size=4, seed=7, **options):
    order = records.RecordOrder(source.shard_counts, seed, 5)
    return masked_lm_batches.MaskedLmBatches(
        source, batch_size=batch_size, seed=seed, order=order, **options
    )


def as_dict(batches, step):
    return dict(zip(batches.specs, batches.arrays(step)))


def unmasked(batch):
    ids = batch["input_ids"].copy()
    rows, slots = np.nonzero(batch["masked_lm_weights"])
    ids[rows, batch["masked_lm_positions"][rows, slots]] = batch[
        "masked_lm_ids"
    ][rows, slots]
    return ids


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


# Masked LM batches.


def test_batch_is_a_function_of_its_step(dynamic):
    forward = training_batches(source_of(dynamic))
    batches = [as_dict(forward, step) for step in range(8)]
    backward = training_batches(source_of(dynamic))
    for step in reversed(range(8)):
        assert_same(batches[step], as_dict(backward, step))
    assert not np.array_equal(batches[0]["input_ids"], batches[1]["input_ids"])


def test_dataset_begins_anywhere(dynamic):
    batches = training_batches(source_of(dynamic))
    features = tf.data.make_one_shot_iterator(
        input_pipeline.dataset(batches, 3)
    ).get_next()
    assert {n: tensor.shape.as_list() for n, tensor in features.items()} == {
        "input_ids": [4, 16],
        "input_mask": [4, 16],
        "masked_lm_positions": [4, 4],
        "masked_lm_ids": [4, 4],
        "masked_lm_weights": [4, 4],
    }
    with tf.Session() as session:
        for step in (3, 4):
            batch = session.run(features)
            assert_same(batch, as_dict(batches, step))
            assert batch["input_ids"].dtype == np.int32


def test_dataset_ends(dynamic):
    batches = training_batches(source_of(dynamic))
    features = tf.data.make_one_shot_iterator(
        input_pipeline.dataset(batches, 0, 1)
    ).get_next()
    with tf.Session() as session:
        session.run(features)
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(features)


def test_seed_changes_order_and_masks(dynamic):
    batch, reseeded = [
        as_dict(training_batches(source_of(dynamic), seed=seed), 0)
        for seed in (7, 8)
    ]
    assert not np.array_equal(unmasked(batch), unmasked(reseeded))


def test_ranks_share_one_global_batch(dynamic):
    whole = training_batches(source_of(dynamic), batch_size=8)
    parts = [
        training_batches(source_of(dynamic), rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for step in (0, 1, 5):
        halves = [as_dict(part, step) for part in parts]
        assert_same(
            as_dict(whole, step),
            {
                name: np.concatenate([half[name] for half in halves])
                for name in whole.specs
            },
        )


def test_every_sequence_is_fed_once_an_epoch_with_new_masks(dynamic):
    batches = training_batches(source_of(dynamic), batch_size=13)
    first, second = as_dict(batches, 0), as_dict(batches, 1)
    expected = {tuple(ids) for ids in sequences_of(13)}
    masks = []
    for batch in (first, second):
        rows = unmasked(batch)
        assert {tuple(row[row != 1]) for row in rows} == expected
        masks.append(
            {
                row[1]: tuple(positions)
                for row, positions in zip(rows, batch["masked_lm_positions"])
            }
        )
    differing = sum(masks[0][key] != masks[1][key] for key in masks[0])
    assert differing >= 8


def test_padding_is_invisible_and_never_masked(dynamic):
    batch = as_dict(training_batches(source_of(dynamic), batch_size=13), 0)
    ids = unmasked(batch)
    np.testing.assert_array_equal(batch["input_mask"], ids != 1)
    assert (ids == 1).any()
    weights = batch["masked_lm_weights"]
    drawn = batch["masked_lm_ids"][weights > 0]
    assert len(drawn) and drawn.min() >= 4 and drawn.max() < MASK
    assert (weights.sum(axis=1) >= 1).all()


def test_static_records_come_as_they_are(tmp_path):
    source = source_of(write_records(tmp_path, static=True))
    assert (
        not source.dynamic and source_of(write_records(tmp_path / "d")).dynamic
    )
    batches = masked_lm_batches.MaskedLmBatches(source, batch_size=13)
    batch = as_dict(batches, 0)
    for row, ids in enumerate(sequences_of(13)):
        example = static_example(ids)
        for name in batches.specs:
            np.testing.assert_array_equal(batch[name][row], example[name])


# Evaluation.


def test_masks_of_evaluation_are_always_the_same(dynamic):
    large = as_dict(
        masked_lm_batches.MaskedLmBatches(
            source_of(dynamic), batch_size=13, seed=7
        ),
        0,
    )
    small = masked_lm_batches.MaskedLmBatches(
        source_of(dynamic), batch_size=5, seed=7
    )
    assert small.steps == 3
    parts = [as_dict(small, step) for step in range(3)]
    assert_same(
        large,
        {
            name: np.concatenate([p[name] for p in parts])[:13]
            for name in small.specs
        },
    )
    order = [tuple(row[row != 1]) for row in unmasked(large)]
    assert order == [tuple(ids) for ids in sequences_of(13)]


def test_masks_of_evaluation_are_not_those_of_training(dynamic):
    source = source_of(dynamic)
    indices = np.arange(13)
    trained = [
        source.masked(indices, np.full(13, epoch), 7) for epoch in range(3)
    ]
    evaluated = as_dict(
        masked_lm_batches.MaskedLmBatches(source, batch_size=13, seed=7), 0
    )
    for masks in trained:
        differing = (
            masks["masked_lm_positions"] != evaluated["masked_lm_positions"]
        ).any(axis=1)
        assert differing.sum() >= 8


def test_last_batch_of_an_evaluation_is_filled_with_weight_0(dynamic):
    batches = masked_lm_batches.MaskedLmBatches(
        source_of(dynamic), batch_size=5
    )
    last = as_dict(batches, 2)
    assert [len(value) for value in last.values()] == [5] * 5
    assert (last["input_ids"][3:] == 1).all()
    assert not last["masked_lm_weights"][3:].any()
    assert last["masked_lm_weights"][:3].any(axis=1).all()


# Settings.


@pytest.mark.parametrize(
    "static, changes, settings, message",
    [
        (
            False,
            {},
            {"vocab_size": 50},
            "vocab_size 60, .*vocab_size 50; build",
        ),
        (False, {}, {"pad_token_id": 0}, "pad_id 1, .*pad_token_id 0; build"),
        (
            False,
            {},
            {"max_seq_length": 8},
            "max_seq_length 16, .*=8; use --max_seq_.*=16",
        ),
        (True, {}, {"max_seq_length": 32}, "max_seq_length 16, expected .*=32"),
        (True, {}, {"max_predictions": 5}, "max_predictions_per_seq 4.*=4"),
        (True, {}, {"max_predictions": 3}, "max_predictions_per_seq 4"),
        (
            True,
            {},
            {"max_seq_length": 32, "max_predictions": 5},
            "have max_seq_length 16 and max_predictions_per_seq 4, .*=32 and "
            ".*=5; use --max_seq_length=16 --max_predictions_per_seq=4",
        ),
    ],
)
def test_records_of_other_settings_are_refused(
    tmp_path, static, changes, settings, message
):
    directory = write_records(tmp_path, static=static, **changes)
    with pytest.raises(errors.UserError, match=message) as caught:
        source_of(directory, **settings)
    assert directory in str(caught.value)


def test_dynamic_records_fit_a_longer_sequence(dynamic, log_lines):
    source = source_of(dynamic, max_seq_length=24, max_predictions=9)
    assert [line for line in log_lines if "--max_seq_length=24" in line]
    del log_lines[:]
    source_of(dynamic)
    assert log_lines == []
    batch = as_dict(training_batches(source), 0)
    assert batch["input_ids"].shape == (4, 24)
    assert batch["masked_lm_ids"].shape == (4, 9)


@pytest.mark.parametrize(
    "static, settings, message",
    [
        (False, {"max_seq_length": 4}, "input_ids has length"),
        (True, {"max_seq_length": 32}, "length 16, expected 32"),
        (True, {"max_predictions": 5}, "length 4, expected 5"),
        (False, {"vocab_size": 10}, "use the vocabulary"),
    ],
)
def test_records_without_a_manifest_are_checked_themselves(
    tmp_path, log_lines, static, settings, message
):
    directory = write_records(tmp_path, static=static, manifest=False)
    with pytest.raises(errors.UserError, match=message):
        source_of(directory, **settings)
    assert ["no manifest.json" in line for line in log_lines] == [True]


def test_records_without_a_manifest_are_read_after_one_warning(
    tmp_path, log_lines
):
    source = source_of(write_records(tmp_path, manifest=False))
    assert len(source) == 13 and source.dynamic
    assert ["no manifest.json" in line for line in log_lines] == [True]
    # `<mask>` is the last id of the vocabulary then.
    batch = as_dict(training_batches(source, 13), 0)
    assert MASK in batch["input_ids"]


def test_no_record_is_an_error(tmp_path):
    directory = write_records(tmp_path, count=0, manifest=False)
    with pytest.raises(errors.UserError, match="no records; build"):
        source_of(directory)


def masked_share(source):
    weights = as_dict(training_batches(source, 13), 0)["masked_lm_weights"]
    return weights.sum() / sum(len(ids) - 2 for ids in sequences_of(13))


def test_share_of_masks_is_the_flags_else_the_manifests(tmp_path):
    directory = write_records(tmp_path, masked_lm_prob=0.5)
    room = dict(max_predictions=16)
    assert 0.4 < masked_share(source_of(directory, **room)) < 0.6
    assert masked_share(source_of(directory, masked_lm_prob=0.1, **room)) < 0.2


def torn_words(source, starts):
    """How many words of a batch are masked in part only."""
    batch = as_dict(training_batches(source, 13), 0)
    torn = 0
    for ids, row, weights in zip(
        unmasked(batch),
        batch["masked_lm_positions"],
        batch["masked_lm_weights"],
    ):
        word = np.cumsum(starts[ids])
        masked = np.zeros(LENGTH, bool)
        masked[row[weights > 0]] = True
        tokens = np.isin(ids, (0, 1, 2), invert=True)
        for number in np.unique(word[tokens]):
            of_word = masked[tokens & (word == number)]
            torn += of_word.any() and not of_word.all()
    return torn


def test_whole_words_are_the_flags_else_the_manifests(tmp_path, dynamic):
    starts = np.arange(VOCAB) % 2 == 0
    directory = write_records(
        tmp_path,
        word_starts=manifests.encode_word_starts(starts),
        do_whole_word_mask=True,
    )
    settings = dict(max_predictions=16, masked_lm_prob=0.5)
    assert torn_words(source_of(directory, **settings), starts) == 0
    assert (
        torn_words(source_of(directory, whole_words=False, **settings), starts)
        > 5
    )
    with pytest.raises(errors.UserError, match="whole-word masking needs"):
        source_of(dynamic, whole_words=True)


# Errors.


def damage_last_record(directory):
    """Flips a bit in the data of the last record of the second file."""
    path = os.path.join(directory, "b.tfrecord")
    with open(path, "r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-8, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))


def test_error_in_a_batch_reaches_the_user(tmp_path):
    directory = write_records(tmp_path)
    damage_last_record(directory)
    batches = training_batches(source_of(directory), batch_size=13)
    features = tf.data.make_one_shot_iterator(
        input_pipeline.dataset(batches, 0)
    ).get_next()
    with tf.Session() as session:
        with pytest.raises(errors.UserError) as caught:
            with tensorflow_errors.reported(batches):
                session.run(features)
    assert "b.tfrecord" in str(caught.value)
    assert "record 5" in str(caught.value)


def test_corrupt_records_are_skipped_when_asked(tmp_path):
    directory = write_records(tmp_path)
    damage_last_record(directory)
    source = source_of(directory, skip_corrupt=True)
    batch = as_dict(training_batches(source, 13), 0)
    assert source.skipped == 1 and (unmasked(batch)[:, 1] != 16).all()


def test_a_tensorflow_error_of_another_kind_stays_one(dynamic):
    batches = training_batches(source_of(dynamic))
    with pytest.raises(tf.errors.OutOfRangeError):
        with tensorflow_errors.reported(batches):
            raise tf.errors.OutOfRangeError(None, None, "end")
    with pytest.raises(errors.UserError, match="--train_batch_size"):
        with tensorflow_errors.reported(batches):
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")


# Features of a task.

LENGTHS = np.random.RandomState(0).randint(5, 90, 30)


def feature_batches(order, **options):
    options = dict(dict(batch_size=4, pad_token_id=1), **options)
    sequences = input_pipeline.Sequences(
        lambda index: [4 + index] * LENGTHS[index],
        LENGTHS,
        {"start_position": np.arange(30, dtype=np.int32)},
    )
    return input_pipeline.FeatureBatches(sequences, order, **options)


def test_pools_use_every_sequence_once_an_epoch():
    pools = input_pipeline.LengthPools(LENGTHS, batch_size=4, seed=1, pool=5)
    steps = [pools.indices(4 * step, 4) for step in range(30)]
    # 15 batches are two epochs, 5 a pool; the next two come in other pools.
    for first in (0, 15):
        seen = np.bincount(np.concatenate(steps[first : first + 15]))
        np.testing.assert_array_equal(seen, np.full(30, 2))
    assert not np.array_equal(steps[:15], steps[15:])


def test_sequences_can_be_read_from_front_to_back(dynamic):
    pools = input_pipeline.LengthPools(
        LENGTHS, batch_size=4, seed=1, is_shuffled=False
    )
    for step in (0, 6, 7):
        assert set(pools.indices(4 * step, 4)) == {
            (4 * step + place) % 30 for place in range(4)
        }
    source = source_of(dynamic)
    batches = masked_lm_batches.MaskedLmBatches(
        source, batch_size=5, order=input_pipeline.FrontToBack(len(source))
    )
    numbers = [unmasked(as_dict(batches, step))[:, 1] - 4 for step in range(3)]
    np.testing.assert_array_equal(np.concatenate(numbers), np.arange(15) % 13)


def test_pools_are_a_function_of_the_step():
    def pools():
        return input_pipeline.LengthPools(LENGTHS, batch_size=4, seed=1, pool=5)

    forward, again = pools(), pools()
    steps = {step: forward.indices(4 * step, 4) for step in range(20)}
    for step in (17, 3, 11, 2):
        np.testing.assert_array_equal(steps[step], again.indices(4 * step, 4))


def test_pools_batch_like_lengths_in_random_order():
    lengths = np.random.RandomState(1).randint(5, 500, 4000)
    pools = input_pipeline.LengthPools(lengths, batch_size=8, seed=1)
    batches = [lengths[pools.indices(8 * step, 8)] for step in range(100)]
    assert np.mean([np.ptp(batch) for batch in batches]) < 30
    longest = [batch.max() for batch in batches]
    assert longest != sorted(longest)


def test_training_features_are_shared_by_ranks():
    def order(size):
        return input_pipeline.LengthPools(
            LENGTHS, batch_size=size, seed=1, pool=5
        )

    whole = feature_batches(order(8), batch_size=8)
    parts = [
        feature_batches(order(8), rank=rank, world_size=2) for rank in (0, 1)
    ]
    for step in (0, 7):
        halves = [as_dict(part, step) for part in parts]
        together = as_dict(whole, step)
        for name in ("index", "start_position"):
            np.testing.assert_array_equal(
                together[name], np.concatenate([half[name] for half in halves])
            )


def test_another_batch_size_takes_up_where_the_last_one_ended():
    pools = input_pipeline.LengthPools(LENGTHS, batch_size=8, seed=1, pool=5)
    expected = pools.indices(0, 120)  # four epochs of 30, three pools
    taken, records = [], 0
    for size, ranks, steps in ((8, 1, 4), (4, 2, 3), (16, 1, 2), (2, 2, 8)):
        parts = [
            feature_batches(pools, batch_size=size, rank=rank, world_size=ranks)
            for rank in range(ranks)
        ]
        for step in range(7, 7 + steps):
            for part in parts:
                part.shift = records - 7 * size * ranks
                taken.append(as_dict(part, step)["index"])
        records += size * ranks * steps
    np.testing.assert_array_equal(np.concatenate(taken), expected)
    assert set(np.bincount(expected)) == {4}


def test_features_are_padded_to_the_next_multiple_of_32():
    batches = feature_batches(
        input_pipeline.LengthPools(LENGTHS, batch_size=4, seed=1, pool=5)
    )
    assert batches.specs["input_ids"].shape.as_list() == [4, None]
    widths = set()
    for step in range(10):
        batch = as_dict(batches, step)
        longest = LENGTHS[batch["index"]].max()
        widths.add(batch["input_ids"].shape[1])
        assert batch["input_ids"].shape == (4, -(-longest // 32) * 32)
        for row, index in zip(batch["input_ids"], batch["index"]):
            assert row.tolist() == [4 + index] * LENGTHS[index] + [1] * (
                len(row) - LENGTHS[index]
            )
        np.testing.assert_array_equal(batch["start_position"], batch["index"])
    assert len(widths) > 1


def predicted(**options):
    """(each batch of a prediction, the indices in all of them)."""
    order = input_pipeline.LongestFirst(LENGTHS, 4)
    batches = feature_batches(order, **options)
    features = [as_dict(batches, step) for step in range(order.steps)]
    return features, np.concatenate([batch["index"] for batch in features])


def test_prediction_reads_each_sequence_once_the_longest_first():
    features, indices = predicted()
    assert sorted(indices) == list(range(30))
    assert [len(batch["index"]) for batch in features] == [4] * 7 + [2]
    widths = [batch["input_ids"].shape[1] for batch in features]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) > 1


def test_static_shapes_fill_the_last_batch_with_padding():
    features, indices = predicted(max_length=96)
    assert {batch["input_ids"].shape for batch in features} == {(4, 96)}
    assert sorted(indices) == [-1, -1] + list(range(30))
    assert (features[-1]["input_ids"][2:] == 1).all()
