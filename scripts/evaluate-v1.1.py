#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores SQuAD v1.1 predictions: exact match and F1 in percent.

    python scripts/evaluate-v1.1.py dev-v1.1.json predictions.json

prints {"exact_match": ..., "f1": ...}. A question without a prediction scores
0 and is named on standard error.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from question_answering import squad_scores  # noqa: E402

EXPECTED_VERSION = "1.1"


def main(arguments):
    document = squad_scores.read_json(arguments.dataset_file, "a SQuAD file")
    version = document.get("version", EXPECTED_VERSION)
    if version != EXPECTED_VERSION:
        print(
            f"Evaluation expects v-{EXPECTED_VERSION}, but got dataset with "
            f"v-{version}",
            file=sys.stderr,
        )
    gold = squad_scores.gold_answers(arguments.dataset_file, document)
    predictions = squad_scores.read_predictions(arguments.prediction_file)
    scores = squad_scores.mean_scores_v1(gold, predictions)
    for question_id, _ in gold:
        if question_id not in predictions:
            print(
                f"Unanswered question {question_id} will receive score 0.",
                file=sys.stderr,
            )
    print(json.dumps(scores))


if __name__ == "__main__":
    parser = squad_scores.ScriptParser(
        description="Evaluation for SQuAD " + EXPECTED_VERSION
    )
    parser.add_argument("dataset_file", help="SQuAD file with the answers")
    parser.add_argument("prediction_file", help="JSON object, id to answer")
    parser.run(main)
