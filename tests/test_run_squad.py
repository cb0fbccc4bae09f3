# SPDX-License-Identifier: Apache-2.0
"""The span loss by hand, and the loss of guessing."""

import json
import math
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import kernels
import modeling
import run_squad
from common import files
from helpers import tiny
from tasks import finetuning
from training import checkpoints, run_config, run_record

CONFIG = configuration.RobertaConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    initializer_range=0.5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
RUN = run_config.RunConfig(output_dir="/nonexistent", train_batch_size=4)
IDS = np.array([[0, 5, 6, 2, 2, 7, 8, 2], [0, 9, 2, 2, 10, 2, 1, 1]])
STARTS, ENDS = [5, 0], [6, 0]


def evaluate(task, ids=IDS):
    """(loss, number of exact spans, start, end, answerable logits)."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(3)
        features = {
            name: tf.constant(value, tf.int32)
            for name, value in (
                ("input_ids", ids),
                ("start_position", STARTS),
                ("end_position", ENDS),
            )
        }
        device = types.SimpleNamespace(kernels=kernels.Kernels())
        setup = finetuning.Setup(RUN, RUN, task, CONFIG, None)
        sums = run_squad.build_model(setup, device).losses(
            features, False, None
        )
        with tf.variable_scope("", reuse=True):
            model = modeling.RobertaModel(CONFIG, False, features["input_ids"])
            hidden = model.get_sequence_output()
            logits = list(modeling.squad_logits(CONFIG, hidden))
            if task.answerability_head:
                logits.append(modeling.answerable_logits(CONFIG, hidden))
        session.run(tf.global_variables_initializer())
        sums, logits = session.run([sums, logits])
        return (sums["loss"], sums["span_accuracy"]) + tuple(logits)


def cross_entropies(logits, labels, ids=IDS):
    """One a row; padding is no answer."""
    logits = np.where(ids == 1, -np.inf, logits)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -scores[np.arange(len(labels)), labels]


def test_loss_is_the_mean_of_start_and_end():
    loss, exact, start, end = evaluate(run_squad.SquadConfig())
    expected = (cross_entropies(start, STARTS) + cross_entropies(end, ENDS)) / 2
    assert loss == pytest.approx(expected.sum(), rel=1e-5)
    seen = np.where(IDS == 1, -np.inf, [start, end])
    assert exact == sum((seen.argmax(-1) == [STARTS, ENDS]).all(axis=0))


def test_more_padding_does_not_change_the_loss():
    wide = np.concatenate([IDS, np.ones([2, 8], int)], axis=1)
    task = run_squad.SquadConfig()
    assert evaluate(task, wide)[0] == pytest.approx(evaluate(task)[0], rel=1e-5)


def test_loss_of_the_classifier_is_added():
    task = run_squad.SquadConfig(
        version_2_with_negative=True, answerability_head=True
    )
    loss, _, start, end, answerable = evaluate(task)
    spans = (cross_entropies(start, STARTS) + cross_entropies(end, ENDS)) / 2
    # The first question has an answer here, the second has none.
    sigmoid = 1 / (1 + np.exp(-answerable))
    expected = spans.sum() - np.log(sigmoid[0]) - np.log(1 - sigmoid[1])
    assert loss == pytest.approx(expected, rel=1e-5)


def data_of(starts, doc_length=20):
    features = [
        types.SimpleNamespace(start_position=start, doc_length=doc_length)
        for start in starts
    ]
    return run_squad.Data([], features)


@pytest.mark.parametrize(
    "starts, expected",
    [
        ([3, 4], math.log(20)),
        ([0, 0], 0.0),
        ([3, 0], 0.5 * math.log(20) + math.log(2)),
    ],
)
def test_loss_of_guessing(starts, expected):
    assert run_squad.chance_loss(data_of(starts)) == pytest.approx(expected)


@pytest.mark.parametrize("version_2", [True, False])
def test_questions_that_all_have_answers_are_warned_of(
    version_2, tmp_path, caplog
):
    path = tiny.write_squad(tmp_path / "train.json", version_2=version_2)
    task = run_squad.SquadConfig(version_2_with_negative=True)
    assert len(run_squad.read_examples(str(path), task, True)) == 8
    assert ("without an answer" in caplog.text) != version_2


@pytest.mark.parametrize("version_2", [True, False])
def test_evaluation_as_the_other_version_is_warned_of(version_2, tmp_path):
    model = tmp_path / "model"
    prefix = tiny.write_trained(model, ["question_answering"])
    (model / "task.json").write_text(
        json.dumps(
            {
                "task": "question_answering",
                "version_2_with_negative": not version_2,
            }
        )
    )
    output = tiny.run(
        tiny.command(
            "run_squad.py",
            [],
            init_checkpoint=prefix,
            predict_file=tiny.write_squad(tmp_path / "dev.json"),
            version_2_with_negative=version_2,
            output_dir=tmp_path / "output",
            do_predict=True,
            max_seq_length=96,
            doc_stride=32,
            accelerator="cpu",
        ),
        tiny.environment(npu=False),
    )
    trained = "v1.1" if version_2 else "v2.0"
    assert output.count(f"was trained on SQuAD {trained} (task.json)") == 1


def test_a_run_resumes_with_the_settings_of_its_task(tmp_path, forked):
    model = tiny.write_model(tmp_path / "model")
    output = tmp_path / "output"

    def flags(epochs, **changed):
        values = dict(
            bert_config_file=model / "config.json",
            vocab_file=model / "vocab.json",
            merges_file=model / "merges.txt",
            train_file=tiny.write_squad(tmp_path / "train.json"),
            output_dir=output,
            do_train=True,
            num_train_epochs=epochs,
            train_batch_size=4,
            max_seq_length=96,
            doc_stride=32,
            accelerator="cpu",
        )
        return {**values, **changed}

    def run(epochs, code=0, **changed):
        return forked("run_squad.py", code=code, **flags(epochs, **changed))

    run(1)
    for name, value in (("max_answer_length", 2), ("max_seq_length", 128)):
        words = tiny.command(
            "scripts/doctor.py", [], **flags(1, **{name: value})
        )
        report = tiny.run(words, tiny.environment(npu=False), code=1)
        assert f"the run began with other settings: {name} " in report
        assert report.count("ERROR  ") == 1
    record = run_record.read(str(output))
    del record["fixed"]["max_answer_length"]  # as of an older version
    files.write_json(str(output / run_record.FILE), record)
    log = run(2, max_answer_length=2, code=1)
    assert "max_answer_length 30 -> 2; use those" in log.splitlines()[-1]
    version_2 = dict(version_2_with_negative=True, answerability_head=True)
    log = run(2, **version_2, code=1).splitlines()[-1]
    assert "output/model.ckpt-2 lacks 2 variables" in log
    assert log.endswith("; pass --answerability_head=False")
    task = json.loads((output / "task.json").read_text())
    assert task["max_answer_length"] == 30
    assert task["version_2_with_negative"] is False
    changed = dict(
        max_answer_length=2,
        version_2_with_negative=True,
        allow_changed_run=True,
    )
    log = run(1, **changed)
    assert "nothing is left to train" in log
    assert json.loads((output / "task.json").read_text()) == task
    run(2, **changed)
    assert json.loads((output / "task.json").read_text()) == {
        **task,
        "max_answer_length": 2,
        "version_2_with_negative": True,
    }
    assert not run_record.read(str(output))["fixed"]["answerability_head"]


def test_frozen_layers_keep_their_weights(tmp_path):
    model = tiny.write_model(tmp_path / "model", layers=2)
    tiny.run(
        tiny.command(
            "run_squad.py",
            [],
            bert_config_file=model / "config.json",
            vocab_file=model / "vocab.json",
            merges_file=model / "merges.txt",
            train_file=tiny.write_squad(tmp_path / "train.json"),
            output_dir=tmp_path / "output",
            do_train=True,
            freeze_layers=1,
            num_train_epochs=4,
            train_batch_size=4,
            num_accumulation_steps=2,
            max_seq_length=96,
            doc_stride=32,
            learning_rate=1e-2,
            accelerator="cpu",
        ),
        tiny.environment(npu=False),
    )
    first, last = (
        tiny.values_of(prefix)
        for prefix in checkpoints.listed(str(tmp_path / "output"))
    )
    changed = {name for name in first if (first[name] != last[name]).any()} - {
        "global_step",
        "batches_seen",
        "records_seen",
    }
    trained = {name for name in changed if "/adam_" not in name}
    assert trained and not any(
        "embeddings" in name or "layer_0" in name for name in changed
    )
    assert "bert/encoder/layer_1/output/dense/kernel" in trained
    assert "cls/squad/output_weights" in trained
