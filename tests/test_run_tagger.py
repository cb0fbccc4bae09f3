# SPDX-License-Identifier: Apache-2.0
"""Labels of words, from files to scores; on NPUs too."""

import csv
import json
import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import cpu_environment
import environment
import run_tagger
from common import errors
from device import Processes
from helpers import invented, tiny
from tasks import conll, finetuning, sequences
from training import run_config


def flags_of(folder, out, **more):
    model = folder / "model"
    flags = dict(
        bert_config_file=model / "config.json",
        vocab_file=model / "vocab.json",
        merges_file=model / "merges.txt",
        output_dir=folder / out,
        max_seq_length=32,
        learning_rate=5e-3,
        num_workers=1,
        display_loss_steps=50,
    )
    flags.update(more)
    return flags


def data_of(folder):
    return {
        name + "_file": folder / "data" / (file + ".txt")
        for name, file in (
            ("train", "train"),
            ("eval", "dev"),
            ("predict", "test"),
        )
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tagger")
    tiny.write_model(path / "model")
    invented.write_conll(path / "data")
    return path


@pytest.fixture(scope="module")
def trained(folder, forked):
    """The log of a run from files to scores and predictions."""
    return forked(
        "run_tagger.py",
        **flags_of(
            folder,
            "out",
            do_train=True,
            do_eval=True,
            do_predict=True,
            num_train_epochs=16,
            **data_of(folder),
        ),
    )


def results_of(folder):
    return {
        key: float(value)
        for key, value in (
            line.split(" = ")
            for line in (folder / "eval_results.txt").read_text().splitlines()
        )
    }


def accuracy(expected, predicted):
    """The share of equal labels in two files of the same words."""
    expected, predicted = (
        conll.read(str(path), label_column=-1) for path in (expected, predicted)
    )
    assert [s.words for s in predicted] == [s.words for s in expected]
    labels = (
        np.concatenate([s.labels for s in sentences])
        for sentences in (expected, predicted)
    )
    return np.mean([a == b for a, b in zip(*labels)])


def test_a_model_learns_and_labels(folder, trained):
    pytest.importorskip("seqeval")
    assert "train.txt: labels converted to BIO: " in trained
    assert "dev.txt: labels converted" not in trained
    results = results_of(folder / "out")
    assert set(results) == {
        "accuracy",
        "global_step",
        "loss",
        "words",
        "sentences",
        "precision",
        "recall",
        "f1",
        "precision_LOC",
        "recall_LOC",
        "f1_LOC",
        "precision_PER",
        "recall_PER",
        "f1_PER",
    }
    assert results["sentences"] == 60
    # Labels drawn at random find hardly any entity.
    assert results["f1"] > 0.8 and results["accuracy"] > 0.9
    assert results["loss"] < 0.3  # chance is 1.5
    scalars = tiny.scalars_of(folder / "out")
    assert list(scalars["eval/f1_PER"].values()) == [
        pytest.approx(results["f1_PER"])
    ]
    assert "eval/words" not in scalars
    assert (
        accuracy(
            folder / "data" / "test.txt", folder / "out" / "predictions.txt"
        )
        > 0.8
    )
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["architectures"] == ["RobertaForTokenClassification"]
    assert config["id2label"] == {
        "0": "O",
        "1": "B-LOC",
        "2": "I-LOC",
        "3": "B-PER",
        "4": "I-PER",
    }
    assert config["label2id"]["I-PER"] == 4


def test_prediction_takes_the_labels_of_the_checkpoint(folder, trained, forked):
    """In windows, of a file with nothing but words."""
    words = folder / "words.txt"
    gold = conll.read(str(folder / "data" / "dev.txt"), label_column=-1)
    words.write_text("\n".join("\n".join(s.words) + "\n" for s in gold))
    out = folder / "out"
    log = forked(
        "run_tagger.py",
        **flags_of(
            folder,
            "own",
            do_predict=True,
            predict_file=words,
            max_seq_length=15,
            init_checkpoint=tf.train.latest_checkpoint(str(out)),
            bert_config_file=out / "config.json",
        ),
    )
    assert "split_sentences=0" not in log and "cut_words=0" in log
    predictions = folder / "own" / "predictions.txt"
    assert accuracy(folder / "data" / "dev.txt", predictions) > 0.7


def test_predict_py_gives_the_labels_of_the_run(folder, trained, forked):
    output = folder / "tagged.csv"
    forked(
        "predict.py",
        "tag",
        model=folder / "out",
        input_file=folder / "data" / "test.txt",
        token_column=0,
        output_file=output,
    )
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    sentences = conll.read(
        str(folder / "out" / "predictions.txt"), label_column=-1
    )
    assert [(row["word"], row["label"]) for row in rows] == [
        pair for s in sentences for pair in zip(s.words, s.labels)
    ]
    assert all(0 < float(row["score"]) <= 1 for row in rows)


def test_npus_get_windows_of_one_length(folder):
    log = tiny.run(
        tiny.command(
            "run_tagger.py",
            [],
            **flags_of(
                folder,
                "npu",
                do_train=True,
                do_predict=True,
                num_train_epochs=0.2,
                train_batch_size=4,
                num_accumulation_steps=2,
                manual_fp16=True,
                iterations_per_loop=2,
                predict_batch_size=3,
                **data_of(folder),
            ),
        )
    )
    assert "device=npu" in log and "predict:" not in log
    assert log.count("num_train_steps=7") == 1
    assert len(conll.read(str(folder / "npu" / "predictions.txt"))) == 20


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {"train_file": ""},
            "--train_file is not given; pass a file of one word per line",
        ),
        ({"train_file": "nowhere.txt"}, "nowhere.txt"),
        ({"label_column": 3}, "no column 3 (--label_column); the columns are"),
        ({"labels": "O,B-PER,I-PER"}, "label 'B-LOC'; expected one of"),
        (
            {"do_train": False},
            "nothing to do: pass --do_train=True or --do_eval",
        ),
    ],
)
def test_a_users_error_is_one_line(folder, forked, flags, message):
    log = forked(
        "run_tagger.py",
        code=1,
        **flags_of(
            folder,
            "none",
            **dict(data_of(folder), **dict({"do_train": True}, **flags)),
        ),
    )
    assert message in log.splitlines()[-1] and "Traceback" not in log
    assert not (folder / "none").exists()


# --- Labels of runs ---------------------------------------------------------


def decide(folder, labels="", do_train=False, train=(), **config):
    (folder / "config.json").write_text(json.dumps(config))
    run = run_config.RunConfig(
        output_dir=str(folder / "none"),
        do_train=do_train,
        bert_config_file=str(folder / "config.json"),
    )
    return run_tagger.labels_of_run(
        run, run_tagger.TaggerConfig(labels=labels), train
    ).names


NAMED = {"id2label": {"0": "O", "1": "B-X"}}
UNNAMED = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}


def test_labels_come_from_the_checkpoint_or_the_flag(tmp_path):
    assert decide(tmp_path, **NAMED) == ("O", "B-X")
    assert decide(tmp_path, "NN,VB", **UNNAMED) == ("NN", "VB")
    assert decide(tmp_path, "NN,VB") == ("NN", "VB")
    assert decide(tmp_path, "B-X,O", **NAMED) == ("O", "B-X")
    regression = dict(UNNAMED, problem_type="regression")
    assert decide(tmp_path, "NN,VB", **regression) == ("NN", "VB")
    sentences = [conll.Sentence("file", (1, 2), ("a", "b"), ("VB", "NN"))]
    assert decide(tmp_path, do_train=True, train=sentences, **NAMED) == (
        "NN",
        "VB",
    )


def test_labels_that_do_not_match_are_rejected(tmp_path):
    with pytest.raises(
        errors.UserError,
        match="trained with labels O, B-X, but B-Y, O were requested; use",
    ):
        decide(tmp_path, "B-Y,O", **NAMED)
    with pytest.raises(errors.UserError, match=r"no labels \(id2label\)"):
        decide(tmp_path)


# --- Scores -----------------------------------------------------------------

SENTENCES = [
    conll.Sentence("file", (1, 2), ("ab", "cd"), ("B-X", "I-X")),
    conll.Sentence("file", (4,), ("ef",), ("O",)),
]
NAMES = ("O", "B-X", "I-X")
OUTPUTS = np.log([[0.1, 0.2, 0.7], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])


def test_an_entity_that_begins_with_i_becomes_bio():
    """As seqeval counts it; what is written is BIO."""
    entities = run_tagger.with_labels(SENTENCES, NAMES, OUTPUTS)
    assert [s.labels for s in entities] == [("B-X", "I-X"), ("O",)]
    plain = run_tagger.with_labels(SENTENCES, ("VB", "NN", "DT"), OUTPUTS)
    assert [s.labels for s in plain] == [("DT", "DT"), ("VB",)]


def test_results_are_of_words_and_of_entities():
    pytest.importorskip("seqeval")
    results = run_tagger.evaluation_results(NAMES, SENTENCES, OUTPUTS)
    assert results == {
        "accuracy": 1.0,
        "words": 3,
        "sentences": 2,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "precision_X": 1.0,
        "recall_X": 1.0,
        "f1_X": 1.0,
        "loss": pytest.approx(-math.log(0.2 * 0.6 * 0.5) / 3),
    }


def test_parts_of_speech_have_an_accuracy_alone():
    sentences = [
        sentence._replace(labels=("VB",) * len(sentence.words))
        for sentence in SENTENCES
    ]
    results = run_tagger.evaluation_results(
        ("VB", "NN", "DT"), sentences, OUTPUTS
    )
    assert set(results) == {"accuracy", "loss", "words", "sentences"}
    assert results["accuracy"] == pytest.approx(1 / 3)


# --- Model ------------------------------------------------------------------


def test_labels_follow_first_tokens():
    window = sequences.Window(np.arange(6), np.array([1, 4]), slice(3, 5))
    encoded = sequences.Windows([window], 0, 0)
    features = run_tagger.sequences_of("x", encoded, np.array([9, 9, 9, 5, 7]))
    labels_of, padding = features.token_values["label"]
    assert labels_of(0).tolist() == [-1, 5, -1, -1, 7, -1]
    assert padding == -1 and features.lengths.tolist() == [6]


def test_loss_is_a_mean_over_labelled_tokens():
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
    model = run_tagger.build_model(setup, device, 3)
    ids = np.random.RandomState(0).randint(3, 40, [2, 5])
    labels = np.array([[-1, 2, -1, 0, -1], [-1, 1, -1, -1, -1]])
    features = {
        "input_ids": tf.placeholder(tf.int32, [None, None]),
        "label": tf.constant(labels, tf.int32),
    }
    sums = model.losses(features, True, tf.constant([1, 2]))
    with tf.variable_scope("", reuse=True):
        outputs = model.predictions(features)["outputs"]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        sums, weight, outputs = session.run(
            [sums, model.head.weight(features), outputs],
            {features["input_ids"]: ids},
        )
    rows, columns = np.nonzero(labels >= 0)
    logits, expected = outputs[rows, columns], labels[rows, columns]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert outputs.shape == (2, 5, 3) and weight == 3
    assert sums["loss"] == pytest.approx(
        -np.log(shares[np.arange(3), expected]).sum(), rel=1e-4
    )
    assert sums["accuracy"] == (logits.argmax(1) == expected).sum()
