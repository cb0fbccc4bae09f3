# SPDX-License-Identifier: Apache-2.0
"""Labels, losses and predictions, by hand."""

import math

import numpy as np
import pytest

from common import errors
from tasks import classification

LABELS = classification.Labels(("no", "yes", "so"))
NUMBERS = classification.Labels(())


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


def test_columns_without_labels_are_rejected():
    with pytest.raises(errors.UserError, match="a.tsv: the only label is 'x'"):
        classification.labels_in(examples("x", "x"))
    with pytest.raises(errors.UserError, match="1001 different labels"):
        classification.labels_in(examples(*map(str, range(1001))))


@pytest.mark.parametrize("labels", [LABELS, NUMBERS])
def test_a_config_gives_its_labels_back(labels):
    values = labels.config_values()
    assert classification.labels_of_config(values) == labels
    assert classification.labels_of_config({}) is None


def test_config_as_hugging_face_writes_it():
    values = classification.Labels(("no", "yes")).config_values()
    assert values["id2label"] == {"0": "no", "1": "yes"}
    assert values["label2id"] == {"no": 0, "yes": 1}
    assert values["problem_type"] == "single_label_classification"
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
