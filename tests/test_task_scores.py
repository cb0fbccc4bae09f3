# SPDX-License-Identifier: Apache-2.0
"""Metrics equal cases by hand."""
import math
import sys

import pytest

import errors
import task_scores

EXPECTED = [1, 1, 1, 0, 0, 0, 0, 0]
PREDICTED = [1, 1, 0, 1, 0, 0, 0, 0]  # 2 true, 1 false positive; 1 false neg.


@pytest.mark.parametrize("name, wanted", [
    ("accuracy", 6 / 8), ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
    ("macro_f1", (2 / 3 + 2 * 4 / (2 * 4 + 1 + 1)) / 2),
    ("matthews_correlation",
     (2 * 4 - 1 * 1) / math.sqrt((2 + 1) * (2 + 1) * (4 + 1) * (4 + 1)))])
def test_scores_of_labels(name, wanted):
    if name != "accuracy":
        pytest.importorskip("sklearn")
    found = task_scores.scores([name], EXPECTED, PREDICTED)
    assert found == {name: pytest.approx(wanted)}


def test_scores_of_numbers():
    pytest.importorskip("scipy")
    found = task_scores.scores(["pearson", "spearman"], [0, 1, 2, 3],
                               [0, 1, 2, 9])
    # Deviations -1.5 -0.5 0.5 1.5 and -3 -2 -1 6.
    wanted = (4.5 + 1 - 0.5 + 9) / math.sqrt(5 * 50)
    assert found == {"pearson": pytest.approx(wanted),
                     "spearman": pytest.approx(1)}


@pytest.mark.parametrize("name, labels, message", [
    ("f2", 2, "'f2' is no metric; expected some of accuracy, f1"),
    ("pearson", 2, "pearson does not fit a classification; take accuracy"),
    ("accuracy", 0, "accuracy does not fit a regression; take pearson"),
    ("f1", 3, "f1 is that of two labels, there are 3; take macro_f1")])
def test_metrics_that_do_not_fit_are_refused(name, labels, message):
    with pytest.raises(errors.UserError, match=message):
        task_scores.check([name], labels)


@pytest.mark.parametrize("name, package, labels", [
    ("f1", "sklearn", 2), ("pearson", "scipy", 0)])
def test_what_is_not_installed_is_named(monkeypatch, name, package, labels):
    monkeypatch.setitem(sys.modules, package, None)  # then it does not import
    with pytest.raises(errors.UserError, match=(
            "the metric %s needs .*pip install -r requirements-tasks.txt" %
            name)):
        task_scores.check([name], labels)
    task_scores.check(["accuracy"], 2)
