#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores SQuAD v1.1 predictions: exact match and F1 in percent.

    python scripts/evaluate-v1.1.py dev-v1.1.json predictions.json

prints {"exact_match": ..., "f1": ...}. A question without a prediction scores
0 and is named on standard error.
"""
import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import errors  # noqa: E402
import squad_scores  # noqa: E402

EXPECTED_VERSION = "1.1"


def evaluate(gold, predictions):
    """Mean exact match and F1, each the best over a question's answers.

    Args:
      gold: list of (question id, list of accepted texts).
      predictions: {question id: text}.

    Raises:
      errors.UserError: a question has no accepted text.
    """
    exact_match = total_f1 = 0
    for question_id, texts in gold:
        if not texts:
            raise errors.UserError(
                "question %r has no answer, as in SQuAD v2.0; score such data "
                "with evaluate-v2.0.py" % question_id)
        if question_id not in predictions:
            print("Unanswered question %s will receive score 0." % question_id,
                  file=sys.stderr)
            continue
        prediction = predictions[question_id]
        exact_match += max(squad_scores.exact_match(prediction, text)
                           for text in texts)
        total_f1 += max(squad_scores.f1(prediction, text, empty_score=0)
                        for text in texts)
    return {"exact_match": 100.0 * exact_match / len(gold),
            "f1": 100.0 * total_f1 / len(gold)}


def main(arguments):
    document = squad_scores.read_json(arguments.dataset_file, "a SQuAD file")
    version = document.get("version", EXPECTED_VERSION)
    if version != EXPECTED_VERSION:
        print("Evaluation expects v-%s, but got dataset with v-%s"
              % (EXPECTED_VERSION, version), file=sys.stderr)
    gold = squad_scores.gold_answers(arguments.dataset_file, document)
    predictions = squad_scores.read_predictions(arguments.prediction_file)
    print(json.dumps(evaluate(gold, predictions)))


if __name__ == "__main__":
    parser = squad_scores.ScriptParser(
        description="Evaluation for SQuAD " + EXPECTED_VERSION)
    parser.add_argument("dataset_file", help="SQuAD file with the answers")
    parser.add_argument("prediction_file", help="JSON object, id to answer")
    parser.run(main)
