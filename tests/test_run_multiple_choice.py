# SPDX-License-Identifier: Apache-2.0
"""Questions with options, from files to scores; on NPUs too."""

import json
import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import cpu_environment
import environment
import run_multiple_choice
from device import Processes
from helpers import invented, tiny
from tasks import finetuning, race
from training import run_config


def flags_of(folder, out, **more):
    model = folder / "model"
    flags = dict(
        bert_config_file=model / "config.json",
        vocab_file=model / "vocab.json",
        merges_file=model / "merges.txt",
        data_dir=folder / "RACE",
        output_dir=folder / out,
        do_train=True,
        max_seq_length=64,
        learning_rate=3e-3,
        num_workers=1,
        display_loss_steps=10,
    )
    flags.update(more)
    return flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("race")
    tiny.write_model(path / "model")
    invented.write_race(path / "RACE")
    return path


def test_a_model_learns_and_answers(folder, forked):
    log = forked(
        "run_multiple_choice.py",
        **flags_of(
            folder, "out", do_eval=True, do_predict=True, num_train_epochs=4
        ),
    )
    assert (
        "train: articles=60 questions=120 truncated_articles=0 "
        "truncated_questions=0"
    ) in log
    lines = (folder / "out" / "eval_results.txt").read_text().splitlines()
    results = {
        key: float(value)
        for key, value in (line.split(" = ") for line in lines)
    }
    assert set(results) == {
        "accuracy",
        "global_step",
        "accuracy_middle",
        "accuracy_high",
        "loss",
        "questions",
    }
    # Chance is 0.25 and 1.386. The right option looks unlike the others, so
    # one that learned nothing may prefer it by luck, but is not sure of it.
    assert results["accuracy"] > 0.9 and results["loss"] < 0.3
    scalars = tiny.scalars_of(folder / "out")
    assert list(scalars["eval/accuracy_high"].values()) == [
        pytest.approx(results["accuracy_high"])
    ]
    assert "eval/questions" not in scalars
    answers = json.loads((folder / "out" / "predictions.json").read_text())
    gold = {
        question.question_id: race.letter(question.answer)
        for article in race.read(str(folder / "RACE" / "test"), True)
        for question in article.questions
    }
    assert list(answers) == list(gold)
    assert (
        np.mean([answers[name]["answer"] == gold[name] for name in gold]) > 0.7
    )
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["architectures"] == ["RobertaForMultipleChoice"]


def test_npus_get_options_of_one_length(folder):
    log = tiny.run(
        tiny.command(
            "run_multiple_choice.py",
            [],
            **flags_of(
                folder,
                "npu",
                num_train_epochs=0.3,
                train_batch_size=4,
                num_accumulation_steps=2,
                manual_fp16=True,
                iterations_per_loop=2,
                do_predict=True,
                predict_batch_size=3,
            ),
        )
    )
    assert "device=npu" in log and "num_train_steps=4" in log
    assert (
        len(json.loads((folder / "npu" / "predictions.json").read_text())) == 8
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"data_dir": ""}, "--data_dir is not given; pass RACE's directory"),
        ({"data_dir": "nowhere"}, "'nowhere/train': not a directory"),
        (
            {"do_train": False},
            "nothing to do: pass --do_train=True or --do_eval",
        ),
    ],
)
def test_a_users_error_is_one_line(folder, forked, flags, message):
    log = forked(
        "run_multiple_choice.py", code=1, **flags_of(folder, "none", **flags)
    )
    assert message in log.splitlines()[-1] and "Traceback" not in log
    assert not (folder / "none").exists()


def question(answer, level):
    return race.Question(f"q-{answer}", level, "dol", ("a",) * 4, answer)


OUTPUTS = np.log(
    [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.2, 0.1]]
)
QUESTIONS = [question(0, "middle"), question(2, "high"), question(1, "high")]


def test_accuracy_is_given_by_level():
    assert run_multiple_choice.evaluation_results(QUESTIONS, OUTPUTS) == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy_middle": 1.0,
        "accuracy_high": 0.5,
        "questions": 3,
        "loss": pytest.approx(-math.log(0.4 * 0.3 * 0.5) / 3),
    }
    assert "accuracy_high" not in run_multiple_choice.evaluation_results(
        QUESTIONS[:1], OUTPUTS[:1]
    )


def test_predictions_hold_letters():
    predictions = run_multiple_choice.predictions_of(QUESTIONS, OUTPUTS)
    assert predictions["q-2"] == {
        "answer": "D",
        "probabilities": {"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4},
    }


def test_loss_is_a_cross_entropy_over_options():
    config = configuration.RobertaConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        initializer_range=0.5,
    )
    run = run_config.RunConfig(output_dir="/nonexistent", npu_bert_debug=True)
    device = cpu_environment.Cpu(environment.DeviceConfig(), Processes())
    setup = finetuning.Setup(run, run, finetuning.TaskConfig(), config, None)
    model = run_multiple_choice.build_model(setup, device)
    ids = np.random.RandomState(0).randint(3, 40, [2, 4, 6])
    labels = [3, 1]
    features = {
        "input_ids": tf.placeholder(tf.int32, [None, 4, None]),
        "label": tf.constant(labels),
    }
    sums = model.losses(features, True, tf.constant([1, 2]))
    with tf.variable_scope("", reuse=True):
        outputs = model.predictions(features)["outputs"]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        sums, outputs = session.run(
            [sums, outputs], {features["input_ids"]: ids}
        )
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    assert sums["loss"] == pytest.approx(
        -np.log(shares[[0, 1], labels]).sum(), rel=1e-4
    )
    assert sums["accuracy"] == (outputs.argmax(1) == labels).sum()
    assert model.head.chance == pytest.approx(math.log(4))
