#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores SQuAD v2.0 predictions, in which "" means: no answer.

    python scripts/evaluate-v2.0.py dev-v2.0.json predictions.json

prints a JSON object with exact match and F1 in percent, over all questions and
over those with (HasAns) and without (NoAns) an answer. --na-prob-file adds the
best thresholds, --out-image-dir draws precision-recall curves. A question
without a prediction scores 0 and is named on standard error.
"""

import json
import math
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import pictures  # noqa: E402
from common import errors  # noqa: E402
from question_answering import squad_scores  # noqa: E402


def define_arguments(parser):
    parser.add_argument(
        "data_file", metavar="data.json", help="SQuAD file with the answers"
    )
    parser.add_argument(
        "pred_file",
        metavar="pred.json",
        help="JSON object, question id to answer",
    )
    parser.add_argument(
        "--out-file",
        "-o",
        metavar="eval.json",
        help="write the scores here (default: print them)",
    )
    parser.add_argument(
        "--na-prob-file",
        "-n",
        metavar="na_prob.json",
        help="JSON object, question id to the probability, or "
        "log odds, that there is no answer",
    )
    parser.add_argument(
        "--na-prob-thresh",
        "-t",
        type=float,
        default=1.0,
        help='take a prediction as "" when its no-answer '
        "probability exceeds this (default 1.0)",
    )
    parser.add_argument(
        "--out-image-dir",
        "-p",
        metavar="out_images",
        help="draw precision-recall curves into this "
        "directory; needs --na-prob-file and "
        "requirements/plots.txt",
    )
    parser.add_argument(
        "--verbose",
        "-v",
        action="store_true",
        help="write each question's scores to standard error",
    )


def apply_threshold(values, gold, null_odds, threshold):
    """Scores when questions above the threshold are answered with ""."""
    return {
        k: float(not gold[k]) if null_odds[k] > threshold else score
        for k, score in values.items()
    }


def mean_scores(exact_scores, f1_scores, ids):
    """Exact match and F1 in percent; an id without scores counts as 0."""
    total = len(ids)
    return {
        "exact": 100.0 * sum(exact_scores.get(k, 0) for k in ids) / total,
        "f1": 100.0 * sum(f1_scores.get(k, 0) for k in ids) / total,
        "total": total,
    }


def add(result, part, prefix):
    result.update((f"{prefix}_{k}", v) for k, v in part.items())


def precision_recall(values, gold, null_odds):
    """The curve as the null threshold rises, and the area under it.

    Args:
      values: {id: score from 0 to 1}.
      gold: {id: list of accepted texts}; some question has an answer.
      null_odds: {id: number}.

    Returns:
      (precisions, recalls, average precision in percent).
    """
    answerable = sum(1 for texts in gold.values() if texts)
    ids = squad_scores.by_null_odds(null_odds, values)
    precisions, recalls = [1.0], [0.0]
    found = average = 0.0
    for i, question_id in enumerate(ids):
        if gold[question_id]:
            found += values[question_id]
        # No threshold can part two questions with equal odds.
        if i + 1 < len(ids) and (
            null_odds[question_id] == null_odds[ids[i + 1]]
        ):
            continue
        precision, recall = found / (i + 1), found / answerable
        average += precision * (recall - recalls[-1])
        precisions.append(precision)
        recalls.append(recall)
    return precisions, recalls, 100.0 * average


def draw_curve(pyplot, curve, path, title):
    precisions, recalls, _ = curve
    pyplot.step(recalls, precisions, color="b", alpha=0.2, where="post")
    pyplot.fill_between(recalls, precisions, step="post", alpha=0.2, color="b")
    pyplot.xlabel("Recall")
    pyplot.ylabel("Precision")
    pyplot.xlim([0.0, 1.05])
    pyplot.ylim([0.0, 1.05])
    pyplot.title(title)
    pyplot.savefig(path)
    pyplot.clf()


def probabilities(null_odds):
    """{id: probability of no answer}.

    Numbers of which one lies beyond 0 to 1 are log odds, as run_squad.py
    writes them; the official script leaves those out of its histograms.
    """
    if all(0 <= number <= 1 for number in null_odds.values()):
        return null_odds
    return {
        k: 0.5 + 0.5 * math.tanh(0.5 * number)  # the logistic function
        for k, number in null_odds.items()
    }


def draw_histogram(pyplot, numbers, path, name):
    pyplot.hist(
        numbers,
        weights=[1.0 / len(numbers)] * len(numbers),
        bins=20,
        range=(0.0, 1.0),
    )
    pyplot.xlabel("Model probability of no-answer")
    pyplot.ylabel("Proportion of dataset")
    pyplot.title("Histogram of no-answer probability: " + name)
    pyplot.savefig(path)
    pyplot.clf()


def draw(pyplot, out_dir, question_scores, gold, null_odds):
    """Draws curves and histograms.

    Returns:
      A dict with pr_exact_ap, pr_f1_ap and pr_oracle_ap in percent, empty when
      no question has an answer.
    """
    if not os.path.isdir(out_dir):
        os.makedirs(out_dir)
    average_precisions = {}
    oracle = {k: float(bool(gold[k])) for k in question_scores[0]}
    if any(gold.values()):
        for values, name, title in (
            (
                question_scores[0],
                "pr_exact",
                "Precision-Recall curve for Exact Match score",
            ),
            (
                question_scores[1],
                "pr_f1",
                "Precision-Recall curve for F1 score",
            ),
            (
                oracle,
                "pr_oracle",
                "Oracle Precision-Recall curve "
                "(binary task of HasAns vs. NoAns)",
            ),
        ):
            curve = precision_recall(values, gold, null_odds)
            draw_curve(
                pyplot, curve, os.path.join(out_dir, name + ".png"), title
            )
            average_precisions[name + "_ap"] = curve[2]
    shares = probabilities(null_odds)
    for name, has_answer in (("hasAns", True), ("noAns", False)):
        numbers = [shares[k] for k in oracle if bool(gold[k]) == has_answer]
        if numbers:
            draw_histogram(
                pyplot,
                numbers,
                os.path.join(out_dir, f"na_prob_hist_{name}.png"),
                name,
            )
    return average_precisions


def read_null_odds(path, predicted):
    """{id: number} for every predicted id, all 0.0 without a file."""
    if not path:
        return {k: 0.0 for k in predicted}
    null_odds = squad_scores.read_null_odds(path)
    for question_id in predicted:
        if question_id not in null_odds:
            raise errors.UserError(
                f"{path} has no number for question {question_id!r}; every "
                "question needs one"
            )
    return null_odds


def report_questions(gold, exact_scores, f1_scores, verbose):
    """Names unpredicted questions, and with `verbose` every score."""
    for question_id in gold:
        if question_id not in exact_scores:
            print(f"Missing prediction for {question_id}", file=sys.stderr)
        elif verbose:
            print(
                f"id={question_id} exact={exact_scores[question_id]} "
                f"f1={f1_scores[question_id]:.4f}",
                file=sys.stderr,
            )


def evaluate(arguments, pyplot):
    """All scores as a dict, in the order of the official script."""
    document = squad_scores.read_json(arguments.data_file, "a SQuAD file")
    gold = dict(squad_scores.gold_answers(arguments.data_file, document))
    predictions = squad_scores.read_predictions(arguments.pred_file)
    raw = squad_scores.scores(gold, predictions)
    report_questions(gold, raw[0], raw[1], arguments.verbose)
    null_odds = read_null_odds(arguments.na_prob_file, raw[0])
    final = [
        apply_threshold(values, gold, null_odds, arguments.na_prob_thresh)
        for values in raw
    ]
    result = mean_scores(*final, ids=list(gold))
    for prefix, has_answer in (("HasAns", True), ("NoAns", False)):
        ids = [k for k in gold if bool(gold[k]) == has_answer]
        if ids:
            add(result, mean_scores(*final, ids=ids), prefix)
    if arguments.na_prob_file:
        result.update(
            squad_scores.find_best_thresholds(gold, predictions, null_odds)
        )
    if pyplot:
        result.update(
            draw(pyplot, arguments.out_image_dir, raw, gold, null_odds)
        )
    return result


def main(arguments):
    pyplot = None
    if arguments.out_image_dir and arguments.na_prob_file:
        pyplot = pictures.load_pyplot("--out-image-dir")
    elif arguments.out_image_dir:
        print(
            "--out-image-dir draws nothing without --na-prob-file",
            file=sys.stderr,
        )
    result = evaluate(arguments, pyplot)
    if not arguments.out_file:
        print(json.dumps(result, indent=2))
        return
    squad_scores.check_output(
        "--out-file",
        arguments.out_file,
        (arguments.data_file, arguments.pred_file, arguments.na_prob_file),
    )
    with open(arguments.out_file, "w") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    parser = squad_scores.ScriptParser(
        description="Evaluation for SQuAD version 2.0"
    )
    define_arguments(parser)
    parser.run(main)
