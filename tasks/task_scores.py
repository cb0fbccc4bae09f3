# SPDX-License-Identifier: Apache-2.0
"""Metrics of classification and regression, by scikit-learn and SciPy, and of
entities, by seqeval.

All three are optional (requirements/tasks.txt); accuracy needs none of them.
"""

import importlib
import typing
import warnings

import numpy as np

from common import errors


def _accuracy(expected, predicted):
    return np.mean(np.asarray(expected) == np.asarray(predicted))


def _exact_match(expected, predicted):
    return np.mean((np.asarray(expected) == np.asarray(predicted)).all(axis=1))


def _of_scikit_learn(function, **options):
    def score(expected, predicted):
        metrics = importlib.import_module("sklearn.metrics")
        return getattr(metrics, function)(expected, predicted, **options)

    return score


def _of_scipy(function):
    def score(expected, predicted):
        stats = importlib.import_module("scipy.stats")
        return getattr(stats, function)(expected, predicted)[0]

    return score


# name: (module that it needs, function of expected and predicted ids or
# numbers; of several labels a text, matrices [n, L] of 0 and 1). f1 is that of
# the label with id 1, the second one.
METRICS = {
    "accuracy": ("", _accuracy),
    "f1": ("sklearn", _of_scikit_learn("f1_score", zero_division=0)),
    "macro_f1": (
        "sklearn",
        _of_scikit_learn("f1_score", average="macro", zero_division=0),
    ),
    "micro_f1": (
        "sklearn",
        _of_scikit_learn("f1_score", average="micro", zero_division=0),
    ),
    "exact_match": ("", _exact_match),
    "matthews_correlation": ("sklearn", _of_scikit_learn("matthews_corrcoef")),
    "pearson": ("scipy", _of_scipy("pearsonr")),
    "spearman": ("scipy", _of_scipy("spearmanr")),
}
OF_NUMBERS = ("pearson", "spearman")
OF_SETS = ("micro_f1", "macro_f1", "exact_match")
OF_LABELS = ("accuracy", "f1", "macro_f1", "matthews_correlation")
_PACKAGES = {
    "sklearn": "scikit-learn",
    "scipy": "SciPy",
    "seqeval.metrics": "seqeval",
}
_Labels = typing.List[typing.List[str]]


def check(
    names: typing.Iterable[str], labels: int, has_several: bool = False
) -> None:
    """Rejects metrics that are unknown, not installed or do not fit.

    Args:
      names: of METRICS.
      labels: number of labels; 0 for a regression.
      has_several: whether a text has any number of them.

    Raises:
      errors.UserError: what to install, or what to pass instead.
    """
    kind, fitting = "classification", OF_LABELS
    if not labels:
        kind, fitting = "regression", OF_NUMBERS
    elif has_several:
        kind, fitting = "classification with several labels a text", OF_SETS
    for name in names:
        if name not in METRICS:
            raise errors.UserError(
                f"--metrics: {name!r} is not a metric; choose from "
                f"{', '.join(METRICS)}"
            )
        if name not in fitting:
            raise errors.UserError(
                f"--metrics: {name} does not fit a {kind}; choose from "
                f"{', '.join(fitting)}"
            )
        if name == "f1" and labels != 2:
            raise errors.UserError(
                f"--metrics: f1 needs two labels, got {labels}; use macro_f1"
            )
        if METRICS[name][0]:
            _check_installed(METRICS[name][0], f"the metric {name}")


def check_entities() -> None:
    """Rejects scoring entities without seqeval.

    Raises:
      errors.UserError: what to install.
    """
    _check_installed("seqeval.metrics", "counting entities")


def _check_installed(module, user):
    errors.import_package(module, user, "tasks", _PACKAGES[module])


def scores(
    names: typing.Iterable[str],
    expected: typing.Sequence,
    predicted: typing.Sequence,
) -> typing.Dict[str, float]:
    """{name: score}.

    Args:
      names: of METRICS.
      expected, predicted: [n] ids of labels, or numbers of a regression; of
        several labels a text [n, L], 0 or 1.
    """
    values = {name: METRICS[name][1](expected, predicted) for name in names}
    # The error of sums is cut: 0.375 instead of 0.37499999999999994.
    return {name: round(float(value), 12) for name, value in values.items()}


def entity_scores(
    expected: _Labels, predicted: _Labels
) -> typing.Dict[str, float]:
    """{"precision", "recall", "f1", and "precision_X", ... of each type X}.

    An entity counts if both its ends and its type are correct. Those without
    a type are over all entities (micro-averaged). Undefined scores are 0.

    Args:
      expected, predicted: labels in BIO, a list per sentence.

    Source: seqeval, which counts as CoNLL's conlleval does.
    """
    metrics = importlib.import_module("seqeval.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of means over no entity at all
        report = metrics.classification_report(
            expected, predicted, output_dict=True, zero_division=0
        )
    rows = {"": report.pop("micro avg")}
    del report["macro avg"], report["weighted avg"]
    rows.update(("_" + name, row) for name, row in report.items())
    return {
        name.split("-")[0] + suffix: float(row[name])
        for suffix, row in rows.items()
        for name in ("precision", "recall", "f1-score")
    }
