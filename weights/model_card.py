# SPDX-License-Identifier: Apache-2.0
"""README.md of a model directory, as Hugging Face's Hub reads it."""

import json
import math
import os
import typing

from common import files

FILE = "README.md"
RESULTS = "eval_results.txt"
# The Hub's names of tasks and transformers' names of models, by keys of
# names.PARTS.
_TASKS = {
    "masked_lm": ("fill-mask", "MaskedLM"),
    "question_answering": ("question-answering", "QuestionAnswering"),
    "classification": ("text-classification", "SequenceClassification"),
    "tagging": ("token-classification", "TokenClassification"),
    "multiple_choice": ("multiple-choice", "MultipleChoice"),
}
# Of RESULTS, what is not a score; counts, which are whole numbers, are not.
_NOT_SCORES = ("loss", "thresh")


def read_scores(directory: str) -> typing.Dict[str, float]:
    """The scores in a directory's eval_results.txt, {} without the file."""
    path = os.path.join(directory, RESULTS)
    if not os.path.isfile(path):
        return {}
    scores = {}
    for line in files.read_bytes(path).decode("utf-8", "replace").splitlines():
        name, _, number = (part.strip() for part in line.partition("="))
        if number.isdigit():
            continue
        try:
            scores[name] = round(float(number), 4)
        except ValueError:
            continue
    return {
        name: score
        for name, score in scores.items()
        if math.isfinite(score) and not any(n in name for n in _NOT_SCORES)
    }


def content(
    name: str,
    task: str,
    scores: typing.Mapping[str, float],
    *,
    license: str,
    language: str,
    datasets: typing.Sequence[str],
) -> bytes:
    """A model card whose metadata are one JSON value a line, which is YAML.

    Args:
      name: of the model.
      task: a key of names.PARTS, or "".
      scores: {name: number}, for the model-index.
      license: the Hub's name of a licence, such as mit.
      language: its code, such as en.
      datasets: the Hub's names; the first one is that of the scores.

    Source: Hugging Face, hub-docs, modelcard.md (the keys of the metadata).
    """
    pipeline, head = _TASKS.get(task, ("feature-extraction", ""))
    values: typing.Dict[str, typing.Any] = {
        "license": license,
        "language": language,
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "tags": ["roberta"],
    }
    if datasets:
        values["datasets"] = list(datasets)
    if scores:
        dataset = datasets[0] if datasets else "unknown"
        values["metrics"] = list(scores)
        values["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": pipeline},
                        "dataset": {"type": dataset, "name": dataset},
                        "metrics": [
                            {"type": metric, "value": score}
                            for metric, score in scores.items()
                        ],
                    }
                ],
            }
        ]
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    rows = [f"| {metric} | {score} |" for metric, score in scores.items()]
    table = ["", "| metric | value |", "|---|---|", *rows] if rows else []
    body = [f"# {name}", "", f"A RoBERTa model for {pipeline}.", *table]
    return "\n".join(
        ["---", *lines, "---", "", *body, *_usage(name, head), ""]
    ).encode("utf-8")


def _usage(name, head):
    """Lines of Python; transformers 5 has no pipeline for some tasks."""
    kind = f"AutoModelFor{head}" if head else "AutoModel"
    return [
        "",
        "```python",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f"model = {kind}.from_pretrained({json.dumps(name)})",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)})",
        "```",
    ]
