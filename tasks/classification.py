# SPDX-License-Identifier: Apache-2.0
"""Examples and labels of text classification and regression.

A label is a text in every file format: `0`, `entailment`. A regression's is a
number. A text with several labels has them separated by commas, or in a list of
JSON.
"""

import math
import typing

import numpy as np
from absl import logging

from common import errors
from tasks import table_files

MAX_LABELS = 1000
_SHOWN = 8  # labels in a line of the log
# What config.json calls the kinds of classifiers, as Hugging Face does.
REGRESSION = "regression"
ONE_LABEL = "single_label_classification"
SEVERAL_LABELS = "multi_label_classification"


class Columns(typing.NamedTuple):
    """The columns of an example's parts; None for a part without one."""

    text: str
    pair: typing.Optional[str] = None
    label: typing.Optional[str] = None
    index: typing.Optional[str] = None  # None counts the rows from 0


class Example(typing.NamedTuple):
    """A text or a pair of texts."""

    index: str
    text: str
    pair: typing.Optional[str]
    label: typing.Union[str, typing.Tuple[str, ...], None]
    place: str  # "file, line 3", for messages


def examples_of(
    table: table_files.Table, columns: Columns, has_several: bool = False
) -> typing.List[Example]:
    """The examples in a table; rows that were skipped are counted in a warning.

    Args:
      table: the file's rows.
      columns: their names.
      has_several: whether a text has any number of labels, none too.

    Raises:
      errors.UserError: a column is missing or does not contain text.
    """
    for name in columns:
        if name is not None and name not in table.columns:
            raise errors.UserError(
                f"{table.path}: no column {name!r}; its columns are "
                f"{', '.join(map(repr, table.columns))}; pass --text_column, "
                "--text_pair_column or --label_column"
            )

    def value(row, column):
        return column and table_files.text_of(table, row, column)

    def label(row):
        if not (has_several and columns.label):
            return value(row, columns.label)
        items = row.values.get(columns.label)
        if not isinstance(items, list):
            items = value(row, columns.label).split(",")
        rows = [row._replace(values={columns.label: item}) for item in items]
        names = [value(part, columns.label).strip() for part in rows]
        return tuple(filter(None, names))

    if table.irregular:
        logging.warning(
            "%s: skipped %d rows that do not have %d fields, the first one in "
            "line %d",
            table.path,
            len(table.irregular),
            len(table.columns),
            table.irregular[0],
        )
    return [
        Example(
            value(row, columns.index) or str(number),
            value(row, columns.text),
            value(row, columns.pair),
            label(row),
            f"{table.path}, line {row.line}",
        )
        for number, row in enumerate(table.rows)
    ]


# --- Labels -----------------------------------------------------------------


def label_ids(
    names: typing.Sequence[str], labels: typing.Iterable[typing.Tuple[str, str]]
) -> np.ndarray:
    """Ids of labels: int32 [n].

    Args:
      names: of all labels, in the order of their ids.
      labels: (label, its place for a message).

    Raises:
      errors.UserError: a label is not one of the names.
    """
    ids = {name: number for number, name in enumerate(names)}
    labels = list(labels)
    for label, place in labels:
        if label not in ids:
            raise errors.UserError(
                f"{place}: label {label!r}; expected one of "
                f"{', '.join(map(repr, names))}: the labels of the checkpoint, "
                "of a new model those of --labels or of its training data"
            )
    return np.array([ids[label] for label, _ in labels], np.int32)


def label_config(
    architecture: str, names: typing.Sequence[str]
) -> typing.Dict[str, typing.Any]:
    """The keys about labels in Hugging Face's config.json."""
    return {
        "architectures": [architecture],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


class Labels(typing.NamedTuple):
    """The classes of a model.

    Attributes:
      names: in the order of their ids; () means a regression.
      threshold: of texts with any number of labels, the probability above
        which a label is predicted; None means one label for each text.
    """

    names: typing.Tuple[str, ...]
    threshold: typing.Optional[float] = None

    def __str__(self) -> str:
        return ", ".join(self.names) or "numbers (a regression)"

    @property
    def is_regression(self) -> bool:
        return not self.names

    @property
    def are_several(self) -> bool:
        """Whether a text has any number of labels."""
        return self.threshold is not None

    @property
    def outputs(self) -> int:
        """The size of the model's output."""
        return len(self.names) or 1

    def ids(self, examples: typing.Iterable[Example]) -> np.ndarray:
        """Labels as int32 [n], or float32 [n] of a regression.

        Of several labels float32 [n, L], 1 for each that a text has, else 0.

        Raises:
          errors.UserError: a label is not one of the names, or not a number.
        """
        if self.is_regression:
            return np.array([_number(e) for e in examples], np.float32)
        if self.are_several:
            return self._sets(list(examples))
        return label_ids(self.names, ((e.label, e.place) for e in examples))

    def counts(self, examples: typing.Sequence[Example]) -> np.ndarray:
        """How many examples have each label: int [L]; not of a regression."""
        ids = self.ids(examples)
        if self.are_several:
            return ids.sum(axis=0).astype(int)
        return np.bincount(ids, minlength=len(self.names))

    def _sets(self, examples):
        columns = label_ids(
            self.names, ((name, e.place) for e in examples for name in e.label)
        )
        counts = np.array([len(e.label) for e in examples], np.int64)
        sets = np.zeros([len(examples), len(self.names)], np.float32)
        sets[np.repeat(np.arange(len(examples)), counts), columns] = 1
        return sets

    def config_values(self) -> typing.Dict[str, typing.Any]:
        """The keys about a classifier in Hugging Face's config.json."""
        return dict(
            label_config(
                "RobertaForSequenceClassification", self.names or ("LABEL_0",)
            ),
            problem_type=REGRESSION
            if self.is_regression
            else SEVERAL_LABELS
            if self.are_several
            else ONE_LABEL,
        )


def _number(example):
    try:
        value = float(example.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise errors.UserError(
            f"{example.place}: label {example.label!r}; a regression expects "
            "a number"
        )
    return value


def labels_in(examples: typing.Sequence[Example]) -> Labels:
    """Labels of the examples, sorted, as numbers if all are integers.

    Raises:
      errors.UserError: there are fewer than two or more than 1,000.
    """
    names = {
        name
        for example in examples
        for name in (
            example.label
            if isinstance(example.label, tuple)
            else [example.label]
        )
    }
    path = examples[0].place.rpartition(",")[0]
    if not any(names):
        raise errors.UserError(
            f"{path}: no row has a label; check --label_column"
        )
    are_several = isinstance(examples[0].label, tuple)
    fix = "check --label_column"
    if not are_several:
        fix += "; for a regression pass --regression=True"
    if len(names) < 2:
        raise errors.UserError(
            f"{path}: the only label is {next(iter(names))!r}, expected at "
            f"least two; {fix}"
        )
    if len(names) > MAX_LABELS:
        raise errors.UserError(f"{path}: {len(names)} different labels; {fix}")
    is_integer = all(name.lstrip("-").isdigit() for name in names)
    return Labels(tuple(sorted(names, key=int if is_integer else None)))


def log_labels(labels: Labels, examples: typing.Sequence[Example]) -> None:
    """Logs how often labels occur; a warning where one looks like a list."""
    if labels.is_regression:
        return
    counts = labels.counts(examples)
    shown = [f"{n or repr(n)} {c}" for n, c in zip(labels.names, counts)]
    if len(shown) > _SHOWN:
        shown[_SHOWN:] = [f"{len(shown) - _SHOWN} more"]
    logging.info("labels: %s", ", ".join(shown))
    known = set(labels.names)
    for separator in ";|" if labels.are_several else ",;|":
        for name in labels.names:
            parts = {part.strip() for part in name.split(separator)}
            if len(parts) > 1 and parts <= known:
                logging.warning(
                    "label %r looks like a list of labels, but is trained as "
                    "one: %sseparate them by commas, or write lists in .jsonl",
                    name,
                    ""
                    if labels.are_several
                    else "pass --multi_label=True and ",
                )
                return


def named_labels(text: str) -> Labels:
    """The labels in --labels: comma separated.

    Raises:
      errors.UserError: a name is empty or repeated.
    """
    names = tuple(text.split(","))
    if not all(names) or len(set(names)) < len(names) or len(names) < 2:
        raise errors.UserError(
            f"--labels={text}: expected at least two different names, comma "
            "separated, in the order of their ids"
        )
    return Labels(names)


def labels_of_config(
    values: typing.Optional[typing.Mapping[str, typing.Any]],
) -> typing.Optional[Labels]:
    """Labels in the object of a config.json, None if there are none.

    Raises:
      errors.UserError: their ids are not 0, 1, 2, ...
    """
    values = values or {}
    if values.get("problem_type") == REGRESSION:
        return Labels(())
    names = values.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    try:
        return Labels(tuple(str(names[str(i)]) for i in range(len(names))))
    except KeyError as error:
        raise errors.UserError(
            f"id2label: no label for {error}; expected one for each number "
            f"from 0 to {len(names) - 1}"
        ) from error


def decide_labels(
    saved: typing.Optional[Labels],
    requested: typing.Optional[Labels],
    config_file: str,
) -> Labels:
    """The labels of a run that does not take those of its training data.

    A checkpoint's labels keep their order; their spelling is the requested
    one. Names such as LABEL_0 are replaced by the requested ones.

    Args:
      saved: the checkpoint's, from `labels_of_config`.
      requested: those of the flags or of the task.
      config_file: the config.json without labels, for a message.

    Raises:
      errors.UserError: there are none, or the requested ones are not the
        checkpoint's.
    """
    if requested is None:
        if saved is None:
            raise errors.UserError(
                f"{config_file}: no labels (id2label); pass --labels, in the "
                "order of their ids, or for a regression --regression=True"
            )
        return saved
    if saved is None or set(saved.names) == set(requested.names):
        return saved or requested
    spelling = {name.lower(): name for name in requested.names}
    lower = [name.lower() for name in saved.names]
    if sorted(lower) == sorted(name.lower() for name in requested.names):
        return Labels(tuple(spelling[name] for name in lower))
    if len(requested.names) == len(saved.names) and all(
        name.startswith("LABEL_") for name in saved.names
    ):
        return requested
    raise errors.UserError(
        f"the checkpoint was trained with labels {saved}, but {requested} were "
        "requested; use another --output_dir to train another model"
    )


# --- Losses and predictions -------------------------------------------------


def chance_loss(labels: Labels, ids: np.ndarray) -> float:
    """The lowest loss of a model that ignores its input.

    The entropy of the labels' frequencies, of several labels the mean of their
    entropies; a regression's variance.
    """
    if labels.is_regression:
        return float(np.var(ids))
    if labels.are_several:
        shares = ids.mean(axis=0, dtype=np.float64)
        shares = np.stack([shares, 1 - shares])
        # 0 log 0 is 0.
        entropies = shares * np.log(np.where(shares > 0, shares, 1))
        return float(-entropies.sum(axis=0).mean())
    frequencies = np.bincount(ids) / len(ids)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * np.log(frequencies)).sum())


def mean_loss(labels: Labels, outputs: np.ndarray, ids: np.ndarray) -> float:
    """Mean cross entropy, or mean squared error of a regression.

    Of several labels the mean over texts and labels of sigmoid's cross entropy.

    Args:
      labels: all labels.
      outputs: float [n, L].
      ids: from `Labels.ids`.
    """
    if labels.are_several:
        outputs = outputs.astype(np.float64)
        return float(np.mean(np.logaddexp(0, outputs) - outputs * ids))
    if labels.is_regression:
        return float(np.mean((outputs[:, 0].astype(np.float64) - ids) ** 2))
    return mean_cross_entropy(outputs, ids)


def mean_cross_entropy(outputs: np.ndarray, ids: np.ndarray) -> float:
    """The mean over n of -log softmax(outputs)[id].

    Args:
      outputs: float [n, L].
      ids: int [n].
    """
    return float(-np.mean(_log_softmax(outputs)[np.arange(len(ids)), ids]))


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Softmax over the last axis: float64 of the same shape."""
    return np.exp(_log_softmax(outputs))


def sigmoid(outputs: np.ndarray) -> np.ndarray:
    """The probability of each of several labels: float64 of the same shape."""
    return 0.5 + 0.5 * np.tanh(0.5 * outputs.astype(np.float64))


def _log_softmax(outputs):
    shifted = outputs - outputs.max(axis=-1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def shares(
    names: typing.Iterable[str], probabilities: np.ndarray
) -> typing.Dict[str, float]:
    """{name: probability}, rounded for a file of predictions."""
    return {
        name: round(float(value), 6)
        for name, value in zip(names, probabilities)
    }


def predicted(
    labels: Labels, outputs: np.ndarray
) -> typing.List[typing.Union[str, float, typing.List[str]]]:
    """[n] labels, lists of several labels, or numbers of a regression."""
    if labels.is_regression:
        return [float(value) for value in outputs[:, 0]]
    if labels.are_several:
        return [
            [name for name, is_above in zip(labels.names, row) if is_above]
            for row in sigmoid(outputs) > labels.threshold
        ]
    return [labels.names[number] for number in outputs.argmax(axis=1)]


def prediction_lines(
    labels: Labels, examples: typing.Sequence[Example], outputs: np.ndarray
) -> typing.Iterator[typing.Dict[str, typing.Any]]:
    """An object per example: its index, label or labels, and probabilities.

    A regression's has its value instead.
    """
    function = sigmoid if labels.are_several else probabilities
    for example, value, row in zip(
        examples, predicted(labels, outputs), function(outputs)
    ):
        if labels.is_regression:
            yield {"index": example.index, "value": round(value, 6)}
        else:
            yield {
                "index": example.index,
                "labels" if labels.are_several else "label": value,
                "probabilities": shares(labels.names, row),
            }
