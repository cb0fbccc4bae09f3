# SPDX-License-Identifier: Apache-2.0
"""Metrics equal cases by hand."""

import math
import sys

import pytest

from common import errors
from tasks import conll, task_scores

EXPECTED = [1, 1, 1, 0, 0, 0, 0, 0]
PREDICTED = [1, 1, 0, 1, 0, 0, 0, 0]  # 2 true, 1 false positive; 1 false neg.


@pytest.mark.parametrize(
    "name, expected",
    [
        ("accuracy", 6 / 8),
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        ("macro_f1", (2 / 3 + 2 * 4 / (2 * 4 + 1 + 1)) / 2),
        (
            "matthews_correlation",
            (2 * 4 - 1 * 1) / math.sqrt((2 + 1) * (2 + 1) * (4 + 1) * (4 + 1)),
        ),
    ],
)
def test_scores_of_labels(name, expected):
    if name != "accuracy":
        pytest.importorskip("sklearn")
    scores = task_scores.scores([name], EXPECTED, PREDICTED)
    assert scores == {name: pytest.approx(expected)}


def test_a_score_has_no_rounding_error():
    pytest.importorskip("sklearn")
    scores = task_scores.scores(["macro_f1"], [1, 1, 0, 0, 0], [0] * 5)
    assert scores == {"macro_f1": 0.375}


def test_scores_of_several_labels():
    """By label, hits 2, 1, 0, false alarms 1, 0, 0, misses 0, 1, 2."""
    pytest.importorskip("sklearn")
    expected = [[1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]]
    predicted = [[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    scores = task_scores.scores(task_scores.OF_SETS, expected, predicted)
    assert scores == {
        "micro_f1": pytest.approx(2 * 3 / (2 * 3 + 1 + 3)),
        "macro_f1": pytest.approx((4 / 5 + 2 / 3 + 0) / 3),
        "exact_match": 0.5,
    }


def test_scores_of_numbers():
    pytest.importorskip("scipy")
    scores = task_scores.scores(
        ["pearson", "spearman"], [0, 1, 2, 3], [0, 1, 2, 9]
    )
    # Deviations -1.5 -0.5 0.5 1.5 and -3 -2 -1 6.
    correlation = (4.5 + 1 - 0.5 + 9) / math.sqrt(5 * 50)
    assert scores == {
        "pearson": pytest.approx(correlation),
        "spearman": pytest.approx(1),
    }


@pytest.mark.parametrize(
    "name, labels, message",
    [
        ("f2", 2, "'f2' is not a metric; choose from accuracy, f1"),
        (
            "pearson",
            2,
            "pearson does not fit a classification; choose from accuracy",
        ),
        (
            "accuracy",
            0,
            "accuracy does not fit a regression; choose from pearson",
        ),
        (
            "micro_f1",
            3,
            "micro_f1 does not fit a classification; choose from a",
        ),
        ("f1", 3, "f1 needs two labels, got 3; use macro_f1"),
    ],
)
def test_metrics_that_do_not_fit_are_rejected(name, labels, message):
    with pytest.raises(errors.UserError, match=message):
        task_scores.check([name], labels)


def test_metrics_of_one_label_do_not_fit_several():
    with pytest.raises(
        errors.UserError,
        match="accuracy does not fit a classification with several labels a "
        "text; choose from micro_f1, macro_f1, exact_match$",
    ):
        task_scores.check(["accuracy"], 3, has_several=True)


@pytest.mark.parametrize(
    "name, package, labels", [("f1", "sklearn", 2), ("pearson", "scipy", 0)]
)
def test_a_missing_package_is_named(monkeypatch, name, package, labels):
    monkeypatch.setitem(sys.modules, package, None)  # then it does not import
    with pytest.raises(
        errors.UserError,
        match=(
            f"the metric {name} needs .*bash scripts/setup.sh --extras=tasks"
        ),
    ):
        task_scores.check([name], labels)
    task_scores.check(["accuracy"], 2)


# Labels of one sentence, those predicted; entities that are right, those
# predicted, those that there are: counted by hand.
ENTITIES = [
    ("B-X I-X O B-Y", "B-X I-X O B-Y", (2, 2, 2)),
    ("B-X B-X", "B-X I-X", (0, 1, 2)),  # adjacent, taken for one
    ("B-X I-X", "B-X B-X", (0, 2, 1)),
    ("B-X I-X I-X", "B-X I-X O", (0, 1, 1)),  # partial overlap
    ("B-X I-X O", "B-Y I-Y O", (0, 1, 1)),  # another type
    ("I-X I-X B-X O I-Y", "B-X I-X B-X O B-Y", (3, 3, 3)),  # IOB1
    ("I-X I-Y", "I-X I-X", (0, 1, 2)),
    ("B-X O B-Y", "O O B-Y", (1, 1, 2)),
    ("O O", "O O", (0, 0, 0)),
    ("O O", "B-X O", (0, 1, 0)),
]


def ratio(part, whole):
    return part / whole if whole else 0.0


@pytest.mark.parametrize("in_bio", [False, True])
@pytest.mark.parametrize("expected, predicted, counts", ENTITIES)
def test_entities_count_whole(expected, predicted, counts, in_bio):
    """Labels in BIO mean the entities that the file's own labels do."""
    pytest.importorskip("seqeval")
    sentences = [expected.split(), predicted.split()]
    if in_bio:
        sentences = [conll.bio(labels) for labels in sentences]
    scores = task_scores.entity_scores(*([labels] for labels in sentences))
    right, given, there = counts
    assert (scores["precision"], scores["recall"], scores["f1"]) == (
        pytest.approx(ratio(right, given)),
        pytest.approx(ratio(right, there)),
        pytest.approx(ratio(2 * right, given + there)),
    )


def test_entities_are_also_counted_by_type():
    pytest.importorskip("seqeval")
    scores = task_scores.entity_scores(
        [["B-X", "I-X", "O"], ["B-Y", "B-Y"]],
        [["B-X", "O", "O"], ["B-Y", "B-Z"]],
    )
    assert scores == {
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(1 / 3),
        "precision_X": 0,
        "recall_X": 0,
        "f1_X": 0,
        "precision_Y": 1,
        "recall_Y": 0.5,
        "f1_Y": pytest.approx(2 / 3),
        "precision_Z": 0,
        "recall_Z": 0,
        "f1_Z": 0,
    }


def test_entities_end_with_their_sentence():
    pytest.importorskip("seqeval")
    scores = task_scores.entity_scores([["B-X"], ["I-X"]], [["B-X"], ["B-X"]])
    assert scores["f1"] == 1


def test_missing_seqeval_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    with pytest.raises(
        errors.UserError,
        match="needs seqeval, which is not "
        ".*run bash scripts/setup.sh --extras=tasks",
    ):
        task_scores.check_entities()
