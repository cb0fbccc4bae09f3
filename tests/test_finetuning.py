# SPDX-License-Identifier: Apache-2.0
"""Steps, batches, losses and checks that the fine-tuning scripts share."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import cpu_environment
import environment
from common import errors
from device import Processes
from helpers import tiny
from tasks import finetuning
from training import logs, preflight, run_config, warm_start

CONFIG = configuration.RobertaConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
)


def run_of(**more):
    return run_config.RunConfig(
        **dict(dict(output_dir="/nonexistent", train_batch_size=4), **more)
    )


def setup_of(run=(), **task):
    run = run_of(**dict(run))
    return finetuning.Setup(
        run, run, finetuning.TaskConfig(**task), CONFIG, None
    )


def device_of():
    return cpu_environment.Cpu(environment.DeviceConfig(), Processes())


@pytest.mark.parametrize(
    "count, epochs, accumulation, steps",
    [
        (80, 2.0, 1, (40, 2)),
        (80, 2.0, 5, (8, 0)),
        (3, 1.0, 1, (1, 0)),
        (87, 1.5, 2, (16, 0)),
        (400, 1.0, 1, (100, 6)),
    ],
)
def test_steps_are_counted_in_features(count, epochs, accumulation, steps):
    setup = setup_of(
        {"num_accumulation_steps": accumulation}, num_train_epochs=epochs
    )
    assert finetuning.schedule(count, setup, device_of()) == steps


IDS = [[0, 5, 2], [0, 7, 8, 9, 2], [0, 4, 4, 2]]
SEQUENCES = finetuning.Sequences(
    IDS.__getitem__,
    np.array([3, 5, 4]),
    {"label": np.array([3, 5, 4], np.int32)},
    {"tags": (lambda index: [-1] + IDS[index][1:-1] + [-1], -1)},
)


def features_of(batches, step):
    return dict(zip(batches.specs, batches.arrays(step)))


def test_values_of_tokens_are_padded_along_with_them():
    batches = finetuning.train_batches(SEQUENCES, setup_of(), device_of())
    for step in range(3):
        features = features_of(batches, step)
        ids, tags = features["input_ids"], features["tags"]
        assert ids.shape == tags.shape == (4, 32)
        assert ((ids == 0) | (ids == 1) | (ids == 2)).tolist() == (
            tags == -1
        ).tolist()
        assert (tags[tags >= 0] == ids[tags >= 0]).all()
        assert ((ids != 1).sum(1) == features["label"]).all()


def test_prediction_sees_each_sequence_once_and_no_label():
    batches, steps = finetuning.predict_batches(
        SEQUENCES, setup_of(predict_batch_size=2), device_of()
    )
    assert steps == 2
    assert set(batches.specs) == {"input_ids", "index"}
    features = [features_of(batches, step) for step in range(2)]
    assert [f["index"].tolist() for f in features] == [[1, 2], [0]]
    assert features[1]["input_ids"][0, :4].tolist() == [0, 5, 2, 1]


@pytest.mark.parametrize("static", [False, True])
def test_choices_have_an_axis(static, monkeypatch):
    pairs = [[[0, 5, 2], [0, 6, 6, 2]], [[0, 7, 2], [0, 8, 2]]]
    device = device_of()
    monkeypatch.setattr(cpu_environment.Cpu, "static_shapes", static)
    batches, _ = finetuning.predict_batches(
        finetuning.Sequences(pairs.__getitem__, np.array([4, 3]), choices=2),
        setup_of({"max_seq_length": 64}, predict_batch_size=3),
        device,
    )
    features = features_of(batches, 0)
    assert features["input_ids"].shape == ((3, 2, 64) if static else (2, 2, 32))
    assert features["input_ids"][:2, :, 1].tolist() == [[5, 6], [7, 8]]
    assert features["index"].tolist() == [0, 1] + [-1] * static


def begin(folder, monkeypatch, run, task):
    monkeypatch.setattr(logs, "set_up_logging", lambda run: None)
    files = {
        name: str(tiny.write_model(folder / "model") / file)
        for name, file in (
            ("bert_config_file", "config.json"),
            ("vocab_file", "vocab.json"),
            ("merges_file", "merges.txt"),
        )
    }
    return finetuning.begin(
        run_of(bert_config_file=files.pop("bert_config_file"), **run),
        finetuning.TaskConfig(**files, **task),
        "cls/tagging/",
    )


def test_a_run_begins_with_its_model_and_tokenizer(tmp_path, monkeypatch):
    setup = begin(
        tmp_path, monkeypatch, {"do_train": True}, {"do_lower_case": True}
    )
    tokenizer = setup.tokenizer
    assert setup.config.vocab_size == tokenizer.vocab_size == tiny.VOCAB_SIZE
    assert tokenizer.encode("AB") == tokenizer.encode("ab")


@pytest.mark.parametrize(
    "run, task, message",
    [
        ({}, {}, "nothing to do: pass --do_train=True or --do_predict=True"),
        (
            {"do_train": True, "max_seq_length": 600},
            {},
            "--max_seq_length is 600",
        ),
        (
            {},
            {"do_predict": True},
            "no checkpoint found in /nonexistent; pass --init",
        ),
    ],
)
def test_contradicting_flags_are_rejected(
    tmp_path, monkeypatch, run, task, message
):
    with pytest.raises(errors.UserError, match=message):
        begin(tmp_path, monkeypatch, run, task)


def test_label_sums_ignore_negative_labels():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    sums = finetuning.label_sums(
        tf.constant(logits, tf.float32), tf.constant([1, 1, -1])
    )
    with tf.Session() as session:
        loss, accuracy = session.run([sums["loss"], sums["accuracy"]])
    assert loss == pytest.approx(-np.log(0.25 * 0.8)) and accuracy == 1


HEAD = ["cls/classification/out_proj/bias", "cls/classification/dense/bias"]


def save(folder, labels):
    """A checkpoint with a head of ones; gives its prefix."""
    with tf.Graph().as_default(), tf.Session() as session:
        for name, size in zip(HEAD + ["bert/x"], (labels, 3, 2)):
            tf.get_variable(name, [size], initializer=tf.ones_initializer())
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, str(folder / "model.ckpt"))


@pytest.mark.parametrize("labels, head", [(2, [1, 1, 1]), (4, [0, 0, 0])])
def test_a_head_for_other_labels_is_initialized(
    tmp_path, log_lines, labels, head
):
    prefix = save(tmp_path, labels=2)
    variables = [
        tf.get_variable(name, [size], initializer=tf.zeros_initializer())
        for name, size in zip(HEAD + ["bert/x"], (labels, 3, 2))
    ]
    warm_start.load(prefix, HEAD)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        _, dense, encoder = session.run(variables)
    assert dense.tolist() == head
    assert encoder.tolist() == [1, 1]
    assert any("the head is initialized" in line for line in log_lines) == (
        labels != 2
    )


def test_a_head_of_free_size_has_parameters():
    # Without a layer of its own: 8 weights and a bias.
    base = preflight.parameters(CONFIG, "encoder")
    assert preflight.parameters(CONFIG, "tagging") == base + 9
