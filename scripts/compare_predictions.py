#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Tells whether one SQuAD prediction is better than another, or luck.

    python scripts/compare_predictions.py dev-v1.1.json a/predictions.json \
        b/predictions.json

A paired bootstrap: questions are drawn with replacement, as many as the file
has, and both predictions are scored on them. The table shows both scores, the
difference B - A with its 95 % confidence interval, and the two-sided p-value
of no difference.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter
13 (percentile intervals); Koehn 2004, Statistical Significance Tests for
Machine Translation Evaluation (pairs).
"""

import pathlib
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

import numpy as np

from common import errors
from question_answering import squad_scores
from scripts import script_parser

_BLOCK = 1 << 22  # drawn indices in memory at a time


class Comparison(typing.NamedTuple):
    """The means of two paired samples, and of their difference B - A."""

    first: float
    second: float
    difference: float
    low: float  # of the 95 % interval
    high: float
    p_value: float


def question_scores(
    gold: squad_scores.Gold, predictions: typing.Dict[str, str]
) -> typing.Dict[str, np.ndarray]:
    """Exact match and F1 of each question in percent, float64 [N] each.

    By v2.0's rules where a question has no answer, else by v1.1's; a question
    that is not predicted scores 0.
    """
    if all(texts for _, texts in gold):
        scores = [
            squad_scores.mean_scores_v1([question], predictions)
            for question in gold
        ]
        exact = [score["exact_match"] for score in scores]
        f1 = [score["f1"] for score in scores]
    else:
        by_id = squad_scores.scores(dict(gold), predictions)
        exact, f1 = (
            [100.0 * values.get(name, 0.0) for name in dict(gold)]
            for values in by_id
        )
    return {"exact": np.array(exact, float), "f1": np.array(f1, float)}


def compare(
    first: np.ndarray, second: np.ndarray, samples: int, seed: int
) -> Comparison:
    """A paired bootstrap of the mean of `second` - `first`.

    Args:
      first, second: float64 [N], scores of the same questions.
      samples: how often N questions are drawn.
      seed: of the random numbers.
    """
    difference = second - first
    count, random = len(difference), np.random.RandomState(seed)
    rows = max(1, _BLOCK // count)
    means = np.concatenate(
        [
            difference[
                random.randint(count, size=(min(rows, samples - start), count))
            ].mean(axis=1)
            for start in range(0, samples, rows)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min(np.mean(means <= 0), np.mean(means >= 0))
    return Comparison(
        first.mean(),
        second.mean(),
        difference.mean(),
        low,
        high,
        min(1.0, 2 * tail),
    )


def main(arguments) -> None:
    document = squad_scores.read_dataset(arguments.dataset)
    gold = squad_scores.gold_answers(arguments.dataset, document)
    scores = []
    for path in (arguments.first, arguments.second):
        predictions = squad_scores.read_predictions(path)
        if predictions.keys().isdisjoint(dict(gold)):
            raise errors.UserError(
                f"{path}: answers no question of {arguments.dataset}; pass "
                "the predictions for this file"
            )
        scores.append(question_scores(gold, predictions))
    print(f"A: {arguments.first}\nB: {arguments.second}\n")
    print("| score | A | B | B - A | 95 % interval | p |")
    print("|---|---|---|---|---|---|")
    for name in scores[0]:
        result = compare(
            scores[0][name], scores[1][name], arguments.samples, arguments.seed
        )
        print(
            f"| {name} | {result.first:.2f} | {result.second:.2f} | "
            f"{result.difference:+.2f} | {result.low:+.2f} to "
            f"{result.high:+.2f} | {result.p_value:.4f} |"
        )
    print(f"\n{len(gold)} questions, {arguments.samples} samples of them")


if __name__ == "__main__":
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="SQuAD JSON with answers")
    parser.add_argument("first", help="predictions A, JSON")
    parser.add_argument("second", help="predictions B, JSON")
    parser.add_argument(
        "--samples", type=int, default=10000, help="(default 10000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.run(main)
