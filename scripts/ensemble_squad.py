#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Combines the answers of several SQuAD models into one prediction.

    python scripts/ensemble_squad.py seed-1 seed-2 seed-3 --output_dir=ensemble

An input is the --output_dir of run_squad.py --do_predict. Each model gives its
n-best answers a softmax of the sum of start and end logit; the ensemble's
probabilities are the means, 0 where a model does not list an answer. For SQuAD
v2.0, "" is predicted where the mean null odds exceed the threshold.
"""

import collections
import os
import pathlib
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

import numpy as np

from common import errors, files
from question_answering import squad_scores
from scripts import script_parser

NBEST, NULL_ODDS = "nbest_predictions.json", "null_odds.json"
_LOGITS = ("start_logit", "end_logit")


def answer_probabilities(
    nbest: typing.Sequence[typing.Dict[str, typing.Any]],
) -> typing.Dict[str, float]:
    """{text: probability} of one model's n-best answers without ""."""
    answers = {
        answer["text"]: sum(answer[name] for name in _LOGITS)
        for answer in nbest
        if answer["text"]
    }
    scores = np.array(list(answers.values()))
    exponentials = np.exp(scores - scores.max()) if answers else scores
    return dict(zip(answers, exponentials / exponentials.sum()))


def combined(
    models: typing.Sequence[typing.Sequence[typing.Dict[str, typing.Any]]],
) -> typing.List[typing.Dict[str, typing.Any]]:
    """One question's n-best list of the ensemble.

    Args:
      models: each model's n-best list, of dicts with text and logits.

    Returns:
      Dicts with text, probability (the mean; falling), start_logit and
      end_logit (the means over the models that list the answer); as many as
      the longest list has.
    """
    totals: typing.Dict[str, float] = collections.defaultdict(float)
    logits: typing.Dict[str, list] = collections.defaultdict(list)
    for nbest in models:
        for text, probability in answer_probabilities(nbest).items():
            totals[text] += float(probability) / len(models)
        for answer in nbest:
            logits[answer["text"]].append([answer[n] for n in _LOGITS])
    ranked = sorted(totals, key=lambda text: -totals[text])
    return [
        {
            "text": text,
            "probability": totals[text],
            **dict(zip(_LOGITS, np.mean(logits[text], axis=0).tolist())),
        }
        for text in ranked[: max(map(len, models))]
    ] or [{"text": "", "probability": 1.0, "start_logit": 0, "end_logit": 0}]


def _same_questions(directories, name, contents):
    """Rejects files that do not answer the same questions."""
    for directory, content in zip(directories, contents):
        if content.keys() != contents[0].keys():
            raise errors.UserError(
                f"{os.path.join(directory, name)}: other questions than in "
                f"{directories[0]}; combine predictions for one file"
            )


def main(arguments) -> None:
    directories = arguments.directories
    for directory, times in collections.Counter(
        map(os.path.realpath, directories)
    ).items():
        if times > 1:
            raise errors.UserError(
                f"{directory}: given {times} times; name each model once"
            )
    paths = [os.path.join(directory, NBEST) for directory in directories]
    nbest = [
        squad_scores.read_nbest(path, dict.fromkeys(_LOGITS, (-1e30, 1e30)))
        for path in paths
    ]
    _same_questions(directories, NBEST, nbest)
    result = {
        name: combined([answers[name] for answers in nbest])
        for name in nbest[0]
    }
    predictions = {name: result[name][0]["text"] for name in result}
    outputs = {"predictions.json": predictions, NBEST: result}
    paths = [os.path.join(directory, NULL_ODDS) for directory in directories]
    with_odds = [path for path in paths if os.path.exists(path)]
    if with_odds and len(with_odds) < len(paths):
        missing = next(path for path in paths if path not in with_odds)
        raise errors.UserError(
            f"{missing}: missing, but {with_odds[0]} exists; combine models "
            "of one version of SQuAD"
        )
    if with_odds:
        odds = [squad_scores.read_null_odds(path) for path in paths]
        _same_questions(directories, NULL_ODDS, [nbest[0], *odds])
        mean = {n: float(np.mean([o[n] for o in odds])) for n in result}
        for name in mean:
            if mean[name] > arguments.null_score_diff_threshold:
                predictions[name] = ""
        outputs[NULL_ODDS] = mean
    outputs = {
        os.path.join(arguments.output_dir, name): value
        for name, value in outputs.items()
    }
    with files.NewFiles(outputs, overwrite=False) as output:
        for path, value in outputs.items():
            output.write(path, files.json_bytes(value))
    print(
        f"{len(predictions)} answers of {len(directories)} models in "
        f"{os.path.join(arguments.output_dir, 'predictions.json')}"
    )


if __name__ == "__main__":
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("directories", nargs="+", help="of run_squad.py")
    parser.add_argument("--output_dir", required=True, help="a new directory")
    parser.add_argument(
        "--null_score_diff_threshold",
        type=float,
        default=0.0,
        help='"" is predicted where the mean null odds exceed it (default 0)',
    )
    parser.run(main)
