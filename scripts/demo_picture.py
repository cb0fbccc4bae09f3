#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws README.md's picture from the demo's output.

    python scripts/demo_picture.py --output=docs/demo.png

Left, the loss of pre-training and fine-tuning; right, a question of the
evaluation file with its context and the best answers of the model.
"""

import os
import pathlib
import sys
import textwrap

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

from question_answering import squad_scores
from scripts import pictures, plot_run, script_parser

_RUNS = {"pretraining": "pre-training", "squad_v1.1": "SQuAD v1.1"}
_WIDTH = 52  # characters of a line of text


def _without_fragments(nbest):
    """The answers of an n-best list of which none is a part of another."""
    whole = []
    for answer in nbest:
        if not any(
            answer["text"] in other["text"] or other["text"] in answer["text"]
            for other in whole
        ):
            whole.append(answer)
    return whole


def _answered(dataset, output):
    """(context, question, answers) of a right answer with a close rival."""
    document = squad_scores.read_json(dataset, "a SQuAD file")
    nbest = squad_scores.read_nbest(
        os.path.join(output, "squad_v1.1", "nbest_predictions.json"),
        {"probability": (0, 1)},
    )
    right = [
        (
            paragraph["context"],
            question["question"],
            _without_fragments(nbest[question["id"]]),
        )
        for _, paragraph, question in squad_scores.iterate_questions(
            dataset, document
        )
        if nbest[question["id"]][0]["text"] == question["answers"][0]["text"]
    ]

    def rivals_share(entry):
        return sum(answer["probability"] for answer in entry[2][1:])

    return min(right, key=lambda entry: abs(rivals_share(entry) - 0.1))


def draw(pyplot, curves, context, question, answers):
    """The figure; curves is {title: plot_run.Curve}."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for title, curve in curves.items():
        left.plot(curve.steps, curve.values, label=title)
    left.set(xlabel="step", ylabel="loss", title="Loss of the demo")
    left.legend()
    left.grid(alpha=0.3)
    right.axis("off")
    right.set_title("A question of the evaluation file")
    lines = [*textwrap.wrap(context, _WIDTH)[:7], "", f"Q: {question}", ""]
    lines += [
        f"{100 * answer['probability']:5.1f} %  {answer['text']}"
        for answer in answers[:3]
    ]
    right.text(
        0, 0.95, "\n".join(lines), va="top", family="monospace", fontsize=10
    )
    figure.tight_layout()
    return figure


def main(arguments) -> None:
    pyplot = pictures.load_pyplot("demo_picture.py")
    curves = {
        title: plot_run.read_run(os.path.join(arguments.demo, name))["loss"]
        for name, title in _RUNS.items()
    }
    figure = draw(pyplot, curves, *_answered(arguments.dataset, arguments.demo))
    pictures.save(figure, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", default="output/demo", help="its output")
    parser.add_argument("--dataset", default="demo/dev-v1.1.json")
    parser.add_argument("--output", required=True, help="PNG")
    parser.run(main)
