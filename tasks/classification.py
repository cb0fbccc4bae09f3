# SPDX-License-Identifier: Apache-2.0
"""Examples and labels of text classification and regression.

A label is a text, whatever the file: `0`, `entailment`. A regression's is a
number.
"""

import math
import typing

import numpy as np
from absl import logging

from common import errors
from tasks import table_files


class Columns(typing.NamedTuple):
    """The columns that an example is made of; None where there is none."""

    text: str
    pair: typing.Optional[str] = None
    label: typing.Optional[str] = None
    index: typing.Optional[str] = None  # None counts the rows from 0


class Example(typing.NamedTuple):
    """A text or a pair of texts."""

    index: str
    text: str
    pair: typing.Optional[str]
    label: typing.Optional[str]
    place: str  # "file, line 3", for messages


def examples_of(table, columns):
    """The examples in a table_files.Table.

    Rows that were left out are counted in one line.

    Raises:
      errors.UserError: a column is not there or holds no text.
    """
    _check_columns(table, columns)

    def value(row, column):
        return (
            None if column is None else table_files.text_of(table, row, column)
        )

    if table.irregular:
        logging.warning(
            "%s: rows left out because their number of fields is not %d: %d "
            "(line %d first)",
            table.path,
            len(table.columns),
            len(table.irregular),
            table.irregular[0],
        )
    return [
        Example(
            value(row, columns.index) or str(number),
            value(row, columns.text),
            value(row, columns.pair),
            value(row, columns.label),
            f"{table.path}, line {row.line}",
        )
        for number, row in enumerate(table.rows)
    ]


def _check_columns(table, columns):
    for name in columns:
        if name is not None and name not in table.columns:
            raise errors.UserError(
                f"{table.path} has no column {name!r}; its columns are "
                f"{', '.join(repr(found) for found in table.columns)}"
            )


class Labels(typing.NamedTuple):
    """What a model tells apart.

    Attributes:
      names: in the order of their ids; () means a regression.
    """

    names: typing.Tuple[str, ...]

    @property
    def is_regression(self):
        return not self.names

    @property
    def outputs(self):
        """Numbers that the model gives."""
        return len(self.names) or 1

    def ids(self, examples):
        """Labels as int32 [n], or float32 [n] of a regression.

        Raises:
          errors.UserError: one is not among the names, or is no number.
        """
        if self.is_regression:
            return np.array([_number(e) for e in examples], np.float32)
        places = {name: place for place, name in enumerate(self.names)}
        for example in examples:
            if example.label not in places:
                raise errors.UserError(
                    f"{example.place} has the label {example.label!r}; "
                    f"expected one of {', '.join(map(repr, self.names))}"
                )
        return np.array([places[e.label] for e in examples], np.int32)

    def config_values(self):
        """What Hugging Face's config.json says of them."""
        names = self.names or ("LABEL_0",)
        return {
            "architectures": ["RobertaForSequenceClassification"],
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
            "problem_type": "regression"
            if self.is_regression
            else "single_label_classification",
        }


def _number(example):
    try:
        value = float(example.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise errors.UserError(
            f"{example.place} has the label {example.label!r}; a regression "
            "expects a number"
        )
    return value


def labels_in(examples):
    """Labels of the examples, sorted, as numbers where all are whole ones.

    Raises:
      errors.UserError: there are fewer than two.
    """
    names = {example.label for example in examples}
    if len(names) < 2:
        raise errors.UserError(
            f"{examples[0].place.rpartition(',')[0]}: the only label is "
            f"{next(iter(names))!r}; expected at least two (is it a "
            "regression? then give --regression=True)"
        )
    if len(names) > 1000:
        raise errors.UserError(
            f"{examples[0].place.rpartition(',')[0]}: there are {len(names)} "
            "labels; is it the right --label_column, or a regression "
            "(--regression=True)?"
        )
    is_whole = all(name.lstrip("-").isdigit() for name in names)
    return Labels(tuple(sorted(names, key=int if is_whole else None)))


def named_labels(text):
    """The names in --labels: comma separated, each once.

    Raises:
      errors.UserError: a name is empty or stands there twice.
    """
    names = tuple(text.split(","))
    if not all(names) or len(set(names)) < len(names) or len(names) < 2:
        raise errors.UserError(
            f"--labels={text}; expected at least two different names, comma "
            "separated, in the order of their ids"
        )
    return names


def labels_of_config(values):
    """Labels that a config.json names, None where it names none.

    Args:
      values: the JSON object.
    """
    if values.get("problem_type") == "regression":
        return Labels(())
    names = values.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    try:
        return Labels(tuple(str(names[str(i)]) for i in range(len(names))))
    except KeyError as error:
        raise errors.UserError(
            f"id2label lacks {error}; expected a label for each number from 0 "
            f"to {len(names) - 1}"
        ) from error


def chance_loss(labels, ids):
    """The loss of a model that looks at no text but knows all labels.

    The entropy of their shares; the variance of a regression's.
    """
    if labels.is_regression:
        return float(np.var(ids))
    shares = np.bincount(ids) / len(ids)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def mean_loss(labels, outputs, ids):
    """Mean cross entropy, or mean squared error of a regression.

    Args:
      outputs: float [n, L].
      ids: [n], what `Labels.ids` gives.
    """
    if labels.is_regression:
        return float(np.mean((outputs[:, 0].astype(np.float64) - ids) ** 2))
    return mean_cross_entropy(outputs, ids)


def mean_cross_entropy(outputs, ids):
    """The mean over n of -log softmax(outputs)[id].

    Args:
      outputs: float [n, L].
      ids: int [n].
    """
    return float(-np.mean(_log_softmax(outputs)[np.arange(len(ids)), ids]))


def probabilities(outputs):
    """Softmax over the last axis: float64 of the same shape."""
    return np.exp(_log_softmax(outputs))


def _log_softmax(outputs):
    shifted = outputs - outputs.max(axis=-1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def predicted(labels, outputs):
    """[n] labels, or numbers of a regression."""
    if labels.is_regression:
        return [float(value) for value in outputs[:, 0]]
    return [labels.names[place] for place in outputs.argmax(axis=1)]


def prediction_lines(labels, examples, outputs):
    """One JSON object an example: its index, label and probabilities.

    A regression's has its value instead.
    """
    if labels.is_regression:
        for example, value in zip(examples, outputs[:, 0]):
            yield {"index": example.index, "value": round(float(value), 6)}
        return
    for example, name, row in zip(
        examples, predicted(labels, outputs), probabilities(outputs)
    ):
        yield {
            "index": example.index,
            "label": name,
            "probabilities": {
                label: round(float(share), 6)
                for label, share in zip(labels.names, row)
            },
        }
