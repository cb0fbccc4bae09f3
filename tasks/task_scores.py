# SPDX-License-Identifier: Apache-2.0
"""Metrics of classification and regression, by scikit-learn and SciPy, and of
entities, by seqeval.

All three are optional (requirements/tasks.txt) and needed for all but accuracy.
"""

import importlib
import warnings

import numpy as np

from common import errors


def _accuracy(expected, predicted):
    return float(np.mean(np.asarray(expected) == np.asarray(predicted)))


def _of_scikit_learn(function, **options):
    def score(expected, predicted):
        metrics = importlib.import_module("sklearn.metrics")
        return float(getattr(metrics, function)(expected, predicted, **options))

    return score


def _of_scipy(function):
    def score(expected, predicted):
        stats = importlib.import_module("scipy.stats")
        return float(getattr(stats, function)(expected, predicted)[0])

    return score


# name: (the package that it needs, function of expected and predicted ids or
# numbers). f1 is that of the label with id 1, the second one.
METRICS = {
    "accuracy": ("", _accuracy),
    "f1": ("sklearn", _of_scikit_learn("f1_score", zero_division=0)),
    "macro_f1": (
        "sklearn",
        _of_scikit_learn("f1_score", average="macro", zero_division=0),
    ),
    "matthews_correlation": ("sklearn", _of_scikit_learn("matthews_corrcoef")),
    "pearson": ("scipy", _of_scipy("pearsonr")),
    "spearman": ("scipy", _of_scipy("spearmanr")),
}
OF_NUMBERS = ("pearson", "spearman")


def check(names, labels):
    """Refuses metrics that are unknown, not installed or do not fit.

    Args:
      names: of METRICS.
      labels: number of labels; 0 for a regression.

    Raises:
      errors.UserError: what to install, or what to give instead.
    """
    for name in names:
        if name not in METRICS:
            raise errors.UserError(
                f"{name!r} is no metric; expected some of {', '.join(METRICS)}"
            )
        if (name in OF_NUMBERS) != (not labels):
            raise errors.UserError(
                "the metric %s does not fit a %s; take %s"
                % (
                    name,
                    "classification" if labels else "regression",
                    ", ".join(
                        metric
                        for metric in METRICS
                        if (metric in OF_NUMBERS) == (not labels)
                    ),
                )
            )
        if name == "f1" and labels != 2:
            raise errors.UserError(
                f"the metric f1 is that of two labels, there are {labels}; "
                "take macro_f1"
            )
        package = METRICS[name][0]
        try:
            if package:
                importlib.import_module(package)
        except ImportError as error:
            raise errors.UserError(
                f"the metric {name} needs "
                f"{ {'sklearn': 'scikit-learn', 'scipy': 'SciPy'}[package] }, "
                f"which is not installed ({error}): pip install -r "
                "requirements/tasks.txt"
            ) from error


def scores(names, expected, predicted):
    """{name: score}.

    Args:
      names: of METRICS.
      expected, predicted: [n] ids of labels, or numbers of a regression.
    """
    return {name: METRICS[name][1](expected, predicted) for name in names}


def check_entities():
    """Refuses to score entities without seqeval.

    Raises:
      errors.UserError: what to install.
    """
    try:
        importlib.import_module("seqeval.metrics")
    except ImportError as error:
        raise errors.UserError(
            "scores of entities need seqeval, which is not installed "
            f"({error}): pip install -r requirements/tasks.txt"
        ) from error


def entity_scores(expected, predicted):
    """{"precision", "recall", "f1", and "precision_X", ... of each type X}.

    An entity counts where both its ends and its type are right. Those without
    a type are over all entities (micro-averaged). What is not defined is 0.

    Args:
      expected, predicted: lists of lists of labels in BIO, one a sentence.

    Source: seqeval, which counts as CoNLL's conlleval does.
    """
    metrics = importlib.import_module("seqeval.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of means over no entity at all
        report = metrics.classification_report(
            expected, predicted, output_dict=True, zero_division=0
        )
    overall = report.pop("micro avg")
    for name in ("macro avg", "weighted avg"):
        del report[name]
    scores = {}
    for suffix, values in [("", overall)] + [
        ("_" + name, values) for name, values in report.items()
    ]:
        scores.update(
            {
                name.split("-")[0] + suffix: float(values[name])
                for name in ("precision", "recall", "f1-score")
            }
        )
    return scores
