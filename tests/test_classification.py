# SPDX-License-Identifier: Apache-2.0
"""Labels, losses and predictions, by hand."""

import json
import math
import re

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors
from tasks import classification, finetuning, table_files

LABELS = classification.Labels(("no", "yes", "so"))
NUMBERS = classification.Labels(())


SETS = classification.Labels(("no", "yes", "so"), 0.5)


def examples(*labels):
    return [
        classification.Example(
            str(n), "dol", None, label, f"a.tsv, line {n + 2}"
        )
        for n, label in enumerate(labels)
    ]


def test_labels_become_ids_in_their_order():
    ids = LABELS.ids(examples("so", "no", "yes"))
    assert ids.dtype == np.int32 and ids.tolist() == [2, 0, 1]
    with pytest.raises(
        errors.UserError,
        match=("a.tsv, line 3: label 'si'; expected one of 'no', 'yes'"),
    ):
        LABELS.ids(examples("so", "si"))


def test_labels_of_a_regression_are_numbers():
    ids = NUMBERS.ids(examples("0.5", "3"))
    assert ids.dtype == np.float32 and ids.tolist() == [0.5, 3.0]
    for wrong in ("x", "nan", ""):
        with pytest.raises(errors.UserError, match="line 2: label"):
            NUMBERS.ids(examples(wrong))


@pytest.mark.parametrize(
    "in_data, names",
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
    ],
)
def test_labels_come_from_the_data(in_data, names):
    assert classification.labels_in(examples(*in_data)).names == names


@pytest.mark.parametrize(
    "labels, counts, advice",
    [
        (["good", "bad", "bad"], "bad 2, good 1", None),
        (
            ["b, so", "a,b", "b", "a"],
            "a 1, a,b 1, b 1, b, so 1",
            "'a,b' .*pass",
        ),
        (["a;b", "b", "a"], "a 1, a;b 1, b 1", "'a;b' .*pass --multi_label="),
        ([("a|b",), ("b", "a"), ("b",)], "a 1, a|b 1, b 2", "'a|b' .*one: sep"),
        ([("a, b", "a"), ("b",)], "a 1, a, b 1, b 1", None),  # a list of JSON
        (["York, NY", "NY"], "NY 1, York, NY 1", None),
        (list("jihgfedcba"), ", ".join(f"{n} 1" for n in "abcdefgh"), None),
    ],
)
def test_labels_are_counted_and_lists_are_named(
    monkeypatch, labels, counts, advice
):
    lines, warnings = [], []
    for name, sink in (("info", lines), ("warning", warnings)):
        monkeypatch.setattr(
            classification.logging,
            name,
            lambda text, *v, s=sink: s.append(text % v),
        )
    rows = examples(*labels)
    found = classification.labels_in(rows)
    if isinstance(labels[0], tuple):
        found = found._replace(threshold=0.5)
    classification.log_labels(found, rows)
    more = ", 2 more" if len(labels) == 10 else ""
    assert lines == [f"labels: {counts}{more}"]
    assert len(warnings) == (advice is not None)
    for warning in warnings:
        assert re.search(advice.replace("|", "[|]"), warning), warning


def test_columns_without_labels_are_rejected():
    with pytest.raises(errors.UserError, match="a.tsv: the only label is 'x'"):
        classification.labels_in(examples("x", "x"))
    with pytest.raises(errors.UserError, match="a.tsv: no row has a label; "):
        classification.labels_in(examples("", ""))
    with pytest.raises(errors.UserError, match="1001 different labels"):
        classification.labels_in(examples(*map(str, range(1001))))


@pytest.mark.parametrize("labels", [LABELS, NUMBERS, SETS])
def test_a_config_gives_its_labels_back(labels):
    values = labels.config_values()
    assert classification.labels_of_config(values).names == labels.names
    assert classification.labels_of_config({}) is None


def test_config_as_hugging_face_writes_it():
    values = classification.Labels(("no", "yes")).config_values()
    assert values["id2label"] == {"0": "no", "1": "yes"}
    assert values["label2id"] == {"no": 0, "yes": 1}
    assert values["problem_type"] == "single_label_classification"
    kind = SETS.config_values()["problem_type"]
    assert kind == "multi_label_classification"
    assert NUMBERS.config_values()["id2label"] == {"0": "LABEL_0"}
    with pytest.raises(errors.UserError, match="id2label: no label for '1'"):
        classification.labels_of_config({"id2label": {"0": "a", "2": "b"}})


def test_losses_by_hand():
    outputs = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]) + 7
    loss = classification.mean_loss(LABELS, outputs, np.array([2, 1]))
    assert loss == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    # Scores far apart do not overflow.
    assert classification.mean_loss(
        LABELS, np.array([[0, 1000.0, 0]]), np.array([0])
    ) == pytest.approx(1000)
    assert (
        classification.mean_loss(
            NUMBERS, np.array([[1.0], [4.0]]), np.array([3.0, 3.0])
        )
        == 2.5
    )


def test_loss_of_guessing():
    assert classification.chance_loss(LABELS, np.array([0, 0, 1, 2])) == (
        pytest.approx(1.5 * math.log(2))
    )
    assert classification.chance_loss(NUMBERS, np.array([1.0, 3.0])) == 1.0


def test_prediction_lines_hold_probabilities():
    outputs = np.log([[0.5, 0.2, 0.3]]).astype(np.float32)
    (line,) = classification.prediction_lines(LABELS, examples(None), outputs)
    assert line == {
        "index": "0",
        "label": "no",
        "probabilities": {"no": 0.5, "yes": 0.2, "so": 0.3},
    }
    (line,) = classification.prediction_lines(
        NUMBERS, examples(None), np.array([[1.25]])
    )
    assert line == {"index": "0", "value": 1.25}


# --- Several labels a text ----------------------------------------------------


def read_sets(path, text):
    path.write_text(text)
    columns = classification.Columns("text", None, "label")
    return classification.examples_of(
        table_files.read(str(path)), columns, has_several=True
    )


def test_several_labels_are_separated_by_commas_or_in_a_list(tmp_path):
    rows = [("a", ["yes", "no"]), ("b", []), ("c", ["so"]), ("d", [3, "x, y"])]
    table = read_sets(
        tmp_path / "a.csv", 'text,label\na,"yes, no"\nb,\nc,so\nd,3\n'
    )
    lines = read_sets(
        tmp_path / "a.jsonl",
        "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows),
    )
    sets = [("yes", "no"), (), ("so",)]
    assert [e.label for e in table] == [*sets, ("3",)]
    assert [e.label for e in lines] == [*sets, ("3", "x, y")]
    labels = classification.labels_in(lines).names
    assert labels == ("3", "no", "so", "x, y", "yes")
    ids = SETS.ids(table[:3])
    assert ids.dtype == np.float32
    assert ids.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert SETS.ids([]).shape == (0, 3)
    with pytest.raises(
        errors.UserError, match="a.csv, line 5: label '3'; expected one of 'no'"
    ):
        SETS.ids(table)
    with pytest.raises(
        errors.UserError, match="a.csv: no row has a label; check"
    ):
        classification.labels_in(table[1:2])
    with pytest.raises(errors.UserError, match="two; check --label_column$"):
        classification.labels_in(table[2:3])
    with pytest.raises(errors.UserError, match=r"line 1: \[\] as 'label'"):
        read_sets(tmp_path / "b.jsonl", '{"text": "a", "label": [[]]}\n')


# Sigmoids 1/2, 3/4, 1/4 and 1/5, 1/2, 9/10.
LOGITS = np.log([[1, 3, 1 / 3], [1 / 4, 1, 9]]).astype(np.float32)
HAVE = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
# The probability of what each text has, or lacks.
LOSS = -np.log([1 / 2, 1 / 4, 3 / 4, 4 / 5, 1 / 2, 9 / 10]).mean()


def test_losses_of_several_labels_by_hand():
    loss = classification.mean_loss(SETS, LOGITS, HAVE)
    assert loss == pytest.approx(LOSS, rel=1e-6)
    far = np.array([[1000.0, -1000, 1000]])
    loss = classification.mean_loss(SETS, far, np.array([[1.0, 0, 0]]))
    assert loss == pytest.approx(1000 / 3)
    # All texts, half, and none of them have a label.
    sets = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    chance = classification.chance_loss(SETS, sets)
    assert chance == pytest.approx(math.log(2) / 3)


def test_the_loss_of_training_is_the_same():
    with tf.Graph().as_default(), tf.Session() as session:
        sums = finetuning.label_set_sums(tf.constant(LOGITS), tf.constant(HAVE))
        values = session.run(sums)
    assert values["loss"] == pytest.approx(2 * LOSS, rel=1e-6)
    # Above one half: the second label; the third one.
    assert values["exact_match"] == 0
    with tf.Graph().as_default(), tf.Session() as session:
        sets = tf.constant(np.array([[0, 1, 0], [0, 1, 1]], np.float32))
        sums = finetuning.label_set_sums(tf.constant(LOGITS), sets)
        assert session.run(sums["exact_match"]) == 1


def test_prediction_lines_list_several_labels():
    def labels(threshold):
        lines = classification.prediction_lines(
            SETS._replace(threshold=threshold), examples(None, None), LOGITS
        )
        return [line["labels"] for line in lines]

    assert labels(0.5) == [["yes"], ["so"]]
    assert labels(0.2) == [["no", "yes", "so"], ["yes", "so"]]
    assert labels(0.95) == [[], []]
    lines = classification.prediction_lines(SETS, examples(None), LOGITS[1:])
    assert list(lines) == [
        {
            "index": "0",
            "labels": ["so"],
            "probabilities": {"no": 0.2, "yes": 0.5, "so": 0.9},
        }
    ]
