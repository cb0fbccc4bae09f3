# SPDX-License-Identifier: Apache-2.0
"""Packed batches: the plan, the layout, and the same function as unpacked."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import kernels
import modeling
import run_classifier
import run_pretraining
import run_squad
import run_tagger
import squad
import tokenization
from helpers import masked_lm_records, tiny
from helpers.paths import SHARED
from tasks import classification, finetuning
from training import checkpoints, masked_lm_batches, packed_batches, run_config

CONFIG = configuration.RobertaConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    initializer_range=0.5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
ROOM = 16


# The plan.


def test_a_sequence_goes_where_the_least_room_is_enough():
    lengths = [9, 7, 4, 4, 3, 3, 2, 1, 1]
    # Rows 9 + 1, 7 + 3, 4 + 4 + 2, 3 + 1 of 10 tokens.
    expected = [0, 1, 2, 2, 1, 3, 2, 0, 3]
    assert packed_batches.best_fit(np.array(lengths), 10).tolist() == expected


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("most", [3, 17, 64])
def test_each_epoch_has_every_sequence_once_in_as_many_rows(most, seed):
    lengths = np.random.RandomState(most).randint(1, most + 1, 500)
    plan = packed_batches.Plan(lengths, 64, seed)
    orders = []
    for epoch in range(3):
        rows = [plan.row(epoch * plan.rows + row) for row in range(plan.rows)]
        assert sorted(np.concatenate(rows)) == list(range(500))
        assert max(lengths[row].sum() for row in rows) <= 64
        assert max(map(len, rows)) == plan.places
        orders.append([row.tolist() for row in rows])
    assert (orders[0] == orders[1]) == (seed is None)
    assert plan.padding == pytest.approx(1 - lengths.sum() / (64 * plan.rows))
    again = packed_batches.Plan(lengths, 64, seed)
    assert again.row(2 * plan.rows + 7).tolist() == orders[2][7]
    if seed:
        # Sequences do not keep their neighbours.
        pairs = [
            {tuple(sorted(row)) for row in order if len(row) > 1}
            for order in orders[:2]
        ]
        assert len(pairs[0] & pairs[1]) < len(pairs[0]) / 2
        other = packed_batches.Plan(lengths, 64, seed + 1)
        assert other.row(7).tolist() != orders[0][7]


def test_rows_have_as_many_sequences_as_a_batch_in_the_mean():
    plan = packed_batches.Plan([4] * 90, 16)
    assert (plan.rows, plan.places) == (23, 4)
    assert [plan.rows_of(count) for count in (1, 4, 30, 90)] == [1, 1, 8, 23]


def test_windows_of_xquad_leave_less_than_a_twentieth_for_padding():
    files = SHARED / "data/roberta"
    path = SHARED / "data/squad/xquad.en.json"
    if not (path.exists() and (files / "vocab.json").exists()):
        pytest.skip("needs RoBERTa's vocabulary and XQuAD, see CONTRIBUTING.md")
    tokenizer = tokenization.RobertaTokenizer(
        str(files / "vocab.json"), str(files / "merges.txt")
    )
    features = squad.convert_examples_to_features(
        squad.read_examples(str(path), True, False),
        tokenizer,
        384,
        128,
        64,
        True,
    )
    plan = packed_batches.Plan([feature.length for feature in features], 384)
    assert plan.sequences > 1190 and plan.padding < 0.05


# Batches.

LENGTHS = np.array([5, 9, 3, 12, 6, 4, 8, 3, 16])
_RANDOM = np.random.RandomState(4)
IDS = [
    np.concatenate([[0], _RANDOM.randint(3, 40, length - 2), [2]])
    for length in LENGTHS
]
COUNT = len(IDS)
VALUES = {
    "start_position": np.array([0, 3, 0, 5, 2, 1, 0, 1, 9], np.int32),
    "end_position": np.array([0, 4, 0, 5, 4, 2, 0, 1, 12], np.int32),
}
LABELS = np.array([0, 1, 2, 0, 2, 1, 0, 1, 1], np.int32)


def tags_of(index):
    tags = IDS[index] % 4
    tags[::3] = -1
    return tags


def sequences_of(values=None, token_values=None):
    return finetuning.Sequences(
        IDS.__getitem__, LENGTHS, values or {}, token_values or {}
    )


def packed_batch(sequences, rows=6, **options):
    plan = packed_batches.Plan(LENGTHS, ROOM)
    batches = packed_batches.PackedBatches(
        sequences, plan, pad_token_id=1, rows=rows, steps=1, **options
    )
    return dict(zip(batches.specs, batches.arrays(0)))


def padded_batch(sequences):
    """All sequences, one in a row."""
    batch = {name: value for name, value in sequences.values.items()}
    tokens = dict(sequences.token_values, input_ids=(sequences.ids, 1))
    for name, (values_of, fill) in tokens.items():
        batch[name] = np.full([COUNT, ROOM], fill, np.int32)
        for index, length in enumerate(LENGTHS):
            batch[name][index, :length] = values_of(index)
    return batch


def test_sequences_share_a_row():
    sequences = finetuning.Sequences(
        [[0, 5, 2], [0, 7, 8, 2], [0, 2]].__getitem__,
        np.array([3, 4, 2]),
        {"label": np.array([10, 11, 12], np.int32)},
        {"tags": (lambda index: [index] * [3, 4, 2][index], -5)},
    )
    batches = packed_batches.PackedBatches(
        sequences,
        packed_batches.Plan(sequences.lengths, 6),
        pad_token_id=1,
        rows=3,
        steps=1,
    )
    batch = {name: v.tolist() for name, v in batches.make(0).items()}
    assert batch == {
        "input_ids": [[0, 7, 8, 2, 0, 2], [0, 5, 2, 1, 1, 1], [1] * 6],
        "sequence_starts": [
            [0, 0, 0, 0, 4, 4],
            [0, 0, 0, -1, -1, -1],
            [-1] * 6,
        ],
        "index": [1, 2, 0, -1, -1, -1],
        "offsets": [0, 4, 0, 0, 0, 0],
        "lengths": [4, 2, 3, 0, 0, 0],
        "label": [11, 12, 10, -1, -1, -1],
        "tags": [[1] * 4 + [-5] * 2, [2] * 2 + [-5] * 4, [0] * 3 + [-5] * 3]
        + [[-5] * 6] * 3,
    }


def test_processes_share_the_rows_of_a_batch():
    sequences = sequences_of()

    def indices(rows, step, **options):
        batches = packed_batches.PackedBatches(
            sequences,
            packed_batches.Plan(LENGTHS, ROOM, 3),
            pad_token_id=1,
            rows=rows,
            **options,
        )
        batches.shift = 1
        return batches.make(step)["index"].tolist()

    for step in range(4):
        parts = [indices(2, step, rank=r, world_size=2) for r in (0, 1)]
        assert parts[0] + parts[1] == indices(4, step)


# The same function as unpacked.


def models():
    device = types.SimpleNamespace(kernels=kernels.Kernels())

    def setup(task):
        run = run_config.RunConfig(output_dir="/nonexistent")
        return finetuning.Setup(run, run, task, CONFIG, None)

    answers = run_squad.SquadConfig(
        version_2_with_negative=True, answerability_head=True
    )
    texts = setup(run_classifier.ClassifierConfig())
    return {
        "squad": (run_squad.build_model(setup(answers), device), VALUES, {}),
        "classifier": (
            run_classifier.build_model(
                texts, device, classification.Labels(("a", "b", "c"))
            ),
            {"label": LABELS},
            {},
        ),
        "regression": (
            run_classifier.build_model(
                texts, device, classification.Labels(())
            ),
            {"label": LABELS.astype(np.float32) / 3},
            {},
        ),
        "several labels": (
            run_classifier.build_model(
                texts, device, classification.Labels(("a", "b"), threshold=0.5)
            ),
            {"label": np.eye(3, 2, dtype=np.float32)[LABELS]},
            {},
        ),
        "tagger": (
            run_tagger.build_model(setup(run_tagger.TaggerConfig()), device, 4),
            {},
            {"label": (tags_of, -1)},
        ),
    }


def run_of(model, batch):
    """(mean losses, gradients, outputs by sequence) of a batch."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(3)
        features = {n: tf.constant(value) for n, value in batch.items()}
        sums = model.losses(features, False, None)
        weight = model.head.weight(features)
        means = {name: value / weight for name, value in sums.items()}
        variables = tf.trainable_variables()
        gradients = [
            tf.convert_to_tensor(gradient)
            for gradient in tf.gradients(means["loss"], variables)
        ]
        with tf.variable_scope("", reuse=True):
            outputs = model.predictions(features)
        session.run(tf.global_variables_initializer())
        means, gradients, outputs = session.run([means, gradients, outputs])
    gradients = dict(zip([v.op.name for v in variables], gradients))
    return means, gradients, outputs


@pytest.mark.parametrize(
    "task", ["squad", "classifier", "regression", "several labels", "tagger"]
)
def test_losses_gradients_and_outputs_are_those_of_single_sequences(task):
    model, values, token_values = models()[task]
    sequences = sequences_of(values, token_values)
    packed = packed_batch(sequences)
    assert (packed["index"] < 0).any() and (packed["input_ids"] == 1).any()
    means, gradients, outputs = run_of(model, packed)
    expected = run_of(model, padded_batch(sequences))
    assert means == pytest.approx(expected[0], abs=1e-5)
    assert set(gradients) == set(expected[1]) and len(gradients) > 30
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, expected[1][name], atol=1e-5, err_msg=name
        )
    index = packed["index"]
    for name, output in outputs.items():
        for place in np.flatnonzero(index >= 0):
            one = expected[2][name][index[place]]
            tokens = slice(LENGTHS[index[place]] if one.ndim else None)
            if task not in ("squad", "tagger"):
                tokens = slice(None)
            np.testing.assert_allclose(
                output[place][tokens] if one.ndim else output[place],
                one[tokens] if one.ndim else one,
                atol=1e-5,
                err_msg=name,
            )


def test_the_last_layer_at_some_positions_of_packed_rows():
    batch = packed_batch(sequences_of())
    # The second token of each sequence, then padding.
    positions = np.zeros([6, 5], np.int32)
    places = len(batch["index"]) // 6
    positions[:, :places] = batch["offsets"].reshape(6, places) + 1
    with tf.Graph().as_default(), tf.Session() as session:

        def rows(batch, **options):
            with tf.variable_scope("", reuse=tf.AUTO_REUSE):
                return modeling.RobertaModel(
                    CONFIG, False, tf.constant(batch["input_ids"]), **options
                ).get_rows()

        some = rows(
            batch,
            sequence_starts=tf.constant(batch["sequence_starts"]),
            output_positions=tf.constant(positions),
        )
        single = rows(padded_batch(sequences_of()))
        session.run(tf.global_variables_initializer())
        some, single = session.run([some, single])
    some = some.reshape(6, 5, 8)[:, :places].reshape(-1, 8)
    single = single.reshape(COUNT, ROOM, 8)[:, 1]
    used = batch["index"] >= 0
    np.testing.assert_allclose(
        some[used], single[batch["index"][used]], atol=1e-5
    )


# Pre-training.


def masked_batches(folder):
    """(source, a packed batch of all 13 records and 3 of the next epoch)."""
    source = masked_lm_records.source_of(
        masked_lm_records.write_records(folder), max_seq_length=32
    )
    lengths = source.token_counts()
    expected = [len(ids) for ids in masked_lm_records.sequences_of(13)]
    assert lengths.tolist() == expected
    plan = packed_batches.Plan(lengths, 32, 5)
    return source, masked_lm_batches.PackedMaskedLmBatches(
        source, plan, lengths, rows=plan.rows + 1, seed=7
    )


def test_masks_of_packed_records_are_those_of_single_ones(tmp_path):
    source, batches = masked_batches(tmp_path)
    batch = dict(zip(batches.specs, batches.arrays(0)))
    sequences = sorted(
        tuple(ids[starts == start])
        for ids, starts in zip(batch["input_ids"], batch["sequence_starts"])
        for start in set(starts) - {-1}
    )
    plan = batches._plan
    records = [plan.row(row) for row in range(plan.rows + 1)]
    epochs = np.repeat([0] * plan.rows + [1], [len(row) for row in records])
    single = source.masked(np.concatenate(records), epochs, 7)
    assert sequences == sorted(
        tuple(ids[: mask.sum()])
        for ids, mask in zip(single["input_ids"], single["input_mask"])
    )
    assert batch["masked_lm_weights"].sum() == single["masked_lm_weights"].sum()
    assert batch["lengths"].sum() == single["input_mask"].sum()


def test_pretraining_computes_the_same_from_packed_records(tmp_path):
    source, batches = masked_batches(tmp_path)
    plan = batches._plan
    records = [plan.row(row) for row in range(plan.rows + 1)]
    epochs = np.repeat([0] * plan.rows + [1], [len(row) for row in records])
    single = source.masked(np.concatenate(records), epochs, 7)
    config = dataclasses.replace(CONFIG, vocab_size=masked_lm_records.VOCAB)

    def run(batch):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(3)
            features = {
                name: tf.constant(
                    value, tf.float32 if "weights" in name else tf.int32
                )
                for name, value in batch.items()
            }
            sums, _, _ = run_pretraining.masked_lm_sums(
                config, features, kernels.Kernels(), is_training=False
            )
            loss = sums["loss"] / tf.reduce_sum(features["masked_lm_weights"])
            gradients = tf.gradients(loss, tf.trainable_variables())
            gradients = [tf.convert_to_tensor(value) for value in gradients]
            session.run(tf.global_variables_initializer())
            return session.run([loss, gradients])

    loss, gradients = run(dict(zip(batches.specs, batches.arrays(0))))
    expected = run(single)
    assert loss == pytest.approx(expected[0], abs=1e-5)
    assert len(gradients) == len(expected[1]) > 30
    for gradient, other in zip(gradients, expected[1]):
        np.testing.assert_allclose(gradient, other, atol=1e-5)


def pretraining_flags(folder, **more):
    model = tiny.write_model(folder / "model", dropout=0.1)
    return dict(
        dict(
            bert_config_file=model / "config.json",
            input_files_dir=tiny.write_sequences(folder / "records"),
            train_batch_size=4,
            num_accumulation_steps=2,
            num_warmup_steps=2,
            learning_rate_schedule="constant",
            max_seq_length=2 * tiny.LENGTH,
            max_predictions_per_seq=tiny.PREDICTIONS,
            learning_rate=1e-3,
            display_loss_steps=1,
            accelerator="cpu",
            cpu_threads=1,
            do_train=True,
            pack_sequences=True,
        ),
        **more,
    )


def test_packed_pretraining_resumes_exactly(tmp_path, forked):
    def run(name, **more):
        flags = pretraining_flags(tmp_path, output_dir=tmp_path / name, **more)
        return forked(*tiny.command("run_pretraining.py", [], **flags)[1:])

    log = run("whole", num_train_epochs=2)
    assert "packed sequences=64 in rows=" in log and " epoch=1.9" in log
    run("parts", num_train_steps=5)
    assert "resuming from" in run("parts", num_train_epochs=2)
    whole, parts = [
        tiny.values_of(checkpoints.newest(str(tmp_path / name)))
        for name in ("whole", "parts")
    ]
    assert {n: v.tobytes() for n, v in parts.items()} == {
        n: v.tobytes() for n, v in whole.items()
    }


def test_records_that_fill_their_rows_are_rejected(tmp_path, forked):
    flags = pretraining_flags(tmp_path, output_dir=tmp_path / "out")
    flags["max_seq_length"] = tiny.LENGTH
    log = forked(*tiny.command("run_pretraining.py", [], **flags)[1:], code=1)
    assert "error: --pack_sequences: the records fill their sequences" in log
    assert not (tmp_path / "out").exists()


# Runs.


def squad_flags(folder, **more):
    model = tiny.write_model(folder / "model", dropout=0.1)
    questions = tiny.write_squad(folder / "train.json", paragraphs=7)
    return dict(
        dict(
            bert_config_file=model / "config.json",
            vocab_file=model / "vocab.json",
            merges_file=model / "merges.txt",
            train_file=questions,
            predict_file=questions,
            num_workers=1,
            train_batch_size=4,
            num_accumulation_steps=2,
            max_seq_length=96,
            doc_stride=32,
            learning_rate=1e-3,
            learning_rate_schedule="constant",
            warmup_proportion=0,
            display_loss_steps=1,
            accelerator="cpu",
            cpu_threads=1,
            pack_sequences=True,
        ),
        **more,
    )


def test_a_packed_run_resumes_exactly_and_predicts_as_unpacked(
    tmp_path, forked
):
    def run(name, **more):
        flags = squad_flags(tmp_path, output_dir=tmp_path / name, **more)
        return forked(*tiny.command("run_squad.py", [], **flags)[1:])

    log = run("whole", do_train=True, num_train_epochs=5)
    # Two of 14 windows of about 45 tokens share a row, four a micro-batch.
    assert "packed sequences=14 in rows=7 of 96 tokens" in log
    assert "train_batch_size=4 is 2 rows, 4.0 sequences on average" in log
    assert "num_train_steps=8" in log and " epoch=4.571" in log
    run("parts", do_train=True, num_train_epochs=2)
    log = run("parts", do_train=True, num_train_epochs=5)
    assert "resuming from" in log
    whole, parts = [
        tiny.values_of(checkpoints.newest(str(tmp_path / name)))
        for name in ("whole", "parts")
    ]
    assert whole["records_seen"] == 8 * 4
    assert {n: v.tobytes() for n, v in parts.items()} == {
        n: v.tobytes() for n, v in whole.items()
    }
    assert json.loads((tmp_path / "whole/run.json").read_text())["fixed"][
        "pack_sequences"
    ]
    nbest = []
    for packs in (True, False):
        run("whole", do_predict=True, pack_sequences=packs)
        path = tmp_path / "whole" / "nbest_predictions.json"
        nbest.append(json.loads(path.read_text()))
    assert len(nbest[0]) == 14 and set(nbest[0]) == set(nbest[1])
    for question, answers in nbest[0].items():
        for answer, expected in zip(answers, nbest[1][question]):
            for name in ("probability", "start_logit", "end_logit"):
                assert answer[name] == pytest.approx(expected[name], abs=1e-5)


def test_a_run_does_not_change_between_packed_and_unpacked(tmp_path, forked):
    flags = squad_flags(tmp_path, output_dir=tmp_path / "out", do_train=True)
    forked(*tiny.command("run_squad.py", [], **flags)[1:])
    flags.update(pack_sequences=False, num_train_epochs=3)
    log = forked(*tiny.command("run_squad.py", [], **flags)[1:], code=1)
    assert "pack_sequences True -> False" in log


@pytest.mark.parametrize(
    "script, flag, message",
    [
        ("run_multiple_choice.py", "data_dir", "not for multiple choice"),
        ("run_pretraining.py", "do_eval", "evaluation in pre-training is not"),
    ],
)
def test_packing_is_rejected_where_it_does_not_apply(
    tmp_path, forked, script, flag, message
):
    model = tiny.write_model(tmp_path / "model")
    flags = dict(
        output_dir=tmp_path / "out",
        bert_config_file=model / "config.json",
        pack_sequences=True,
        do_train=flag != "do_eval",
        **{flag: True if flag == "do_eval" else tmp_path},
    )
    log = forked(*tiny.command(script, [], **flags)[1:], code=1)
    assert f"error: --pack_sequences: {message}" in log
