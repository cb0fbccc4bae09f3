# SPDX-License-Identifier: Apache-2.0
"""GLUE's tasks: their files, columns, labels, metrics and the server's names.

The files are those that GLUE's download script leaves in one directory a task;
MRPC also in the form that its authors publish. Nothing in them is quoted. Lines
of QQP's training and development set that have another number of fields are
left out and counted, as fairseq does.

Source: Wang et al. 2018 (arXiv:1804.07461), table 1 (metrics); fairseq,
examples/roberta/preprocess_GLUE_tasks.sh (columns).
"""

import os
import typing

from common import errors
from tasks import classification, table_files


class Split(typing.NamedTuple):
    """One file of a task."""

    file: str
    submission: str = ""  # the server's name for predictions of a test set
    suffix: str = ""  # of its metrics' names, where a task has several


class Task(typing.NamedTuple):
    """A task.

    Attributes:
      labels: in the order of their ids; () for a regression.
      columns: classification.Columns of training and development sets.
      metrics: names of task_scores.METRICS.
      evaluation, test: Splits.
      header: columns of training and development sets without a header line.
      index: the test set's column of row numbers.
    """

    labels: typing.Tuple[str, ...]
    columns: classification.Columns
    metrics: typing.Tuple[str, ...]
    evaluation: typing.Tuple[Split, ...] = (Split("dev.tsv"),)
    test: typing.Tuple[Split, ...] = ()
    header: typing.Optional[typing.Tuple[str, ...]] = None
    index: str = "index"


_ENTAILMENT = ("entailment", "not_entailment")
_ZERO_ONE = ("0", "1")


def _test(name):
    return (Split("test.tsv", name + ".tsv"),)


def _columns(text, pair, label):
    return classification.Columns(text, pair, label)


_SENTENCES = _columns("sentence1", "sentence2", "label")
TASKS = {
    "CoLA": Task(
        _ZERO_ONE,
        _columns("sentence", None, "label"),
        ("matthews_correlation",),
        test=_test("CoLA"),
        header=("source", "label", "star", "sentence"),
    ),
    "SST-2": Task(
        _ZERO_ONE,
        _columns("sentence", None, "label"),
        ("accuracy",),
        test=_test("SST-2"),
    ),
    "MRPC": Task(
        _ZERO_ONE,
        _columns("#1 String", "#2 String", "Quality"),
        ("accuracy", "f1"),
        test=_test("MRPC"),
    ),
    "STS-B": Task(
        (),
        _columns("sentence1", "sentence2", "score"),
        ("pearson", "spearman"),
        test=_test("STS-B"),
    ),
    "QQP": Task(
        _ZERO_ONE,
        _columns("question1", "question2", "is_duplicate"),
        ("accuracy", "f1"),
        test=_test("QQP"),
        index="id",
    ),
    # In the order of the published roberta-large-mnli.
    "MNLI": Task(
        ("contradiction", "neutral", "entailment"),
        _columns("sentence1", "sentence2", "gold_label"),
        ("accuracy",),
        (
            Split("dev_matched.tsv", suffix="_matched"),
            Split("dev_mismatched.tsv", suffix="_mismatched"),
        ),
        (
            Split("test_matched.tsv", "MNLI-m.tsv"),
            Split("test_mismatched.tsv", "MNLI-mm.tsv"),
        ),
    ),
    "QNLI": Task(
        _ENTAILMENT,
        _columns("question", "sentence", "label"),
        ("accuracy",),
        test=_test("QNLI"),
    ),
    "RTE": Task(_ENTAILMENT, _SENTENCES, ("accuracy",), test=_test("RTE")),
    "WNLI": Task(_ZERO_ONE, _SENTENCES, ("accuracy",), test=_test("WNLI")),
}
# The diagnostic set that a model of MNLI answers, and where it may stand.
DIAGNOSTIC = Split("", "AX.tsv")
_DIAGNOSTIC_FILES = (
    "diagnostic.tsv",
    os.path.join("..", "diagnostic", "diagnostic.tsv"),
    os.path.join("..", "AX", "diagnostic.tsv"),
    os.path.join("..", "AX", "AX.tsv"),
)
_MRPC_FILES = {
    "train": "msr_paraphrase_train.txt",
    "test": "msr_paraphrase_test.txt",
}
_MRPC_DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")
_MRPC_IDS = ("#1 ID", "#2 ID")


def read_train(name, data_dir):
    """The labelled examples of a task's training set.

    Raises:
      errors.UserError: a file is not of the task's format.
      OSError: it cannot be read.
    """
    return _read_labelled(name, data_dir, "train.tsv", is_dev=False)


def read_evaluation(name, data_dir):
    """[(suffix, labelled examples)] of a task's development sets."""
    return [
        (split.suffix, _read_labelled(name, data_dir, split.file, is_dev=True))
        for split in TASKS[name].evaluation
    ]


def read_test(name, data_dir, diagnostic_file=""):
    """[(the server's file name, examples)] of a task's test sets.

    Args:
      name: a key of TASKS.
      data_dir: the task's directory.
      diagnostic_file: MNLI's diagnostic set; "" looks for it in and beside
        data_dir.
    """
    task = TASKS[name]
    found = []
    for split in task.test:
        path = os.path.join(data_dir, split.file)
        if name == "MRPC" and not os.path.exists(path):
            path = os.path.join(data_dir, _MRPC_FILES["test"])
        found.append((split.submission, _read_unlabelled(task, path)))
    if name == "MNLI":
        path = diagnostic_file or next(
            (
                path
                for path in (
                    os.path.normpath(os.path.join(data_dir, place))
                    for place in _DIAGNOSTIC_FILES
                )
                if os.path.exists(path)
            ),
            "",
        )
        if path:
            found.append((DIAGNOSTIC.submission, _read_unlabelled(task, path)))
    return found


def _read_labelled(name, data_dir, file, is_dev):
    task = TASKS[name]
    path = os.path.join(data_dir, file)
    if name == "MRPC" and not os.path.exists(path):
        return _read_mrpc(data_dir, is_dev)
    table = table_files.read(
        path, header=task.header, quoting="none", skips_irregular=True
    )
    return classification.examples_of(table, task.columns)


def _read_mrpc(data_dir, is_dev):
    """Training or development part of the file that MRPC's authors publish."""
    path = os.path.join(data_dir, _MRPC_FILES["train"])
    table = table_files.read(path, quoting="none")
    ids = next(
        (
            ids
            for ids in (os.path.join(data_dir, name) for name in _MRPC_DEV_IDS)
            if os.path.exists(ids)
        ),
        None,
    )
    if ids is None:
        raise errors.UserError(
            f"{data_dir} has neither train.tsv and dev.tsv nor "
            f"{_MRPC_DEV_IDS[0]}, which says which pairs of "
            f"{_MRPC_FILES['train']} are GLUE's development set; get GLUE's "
            "mrpc_dev_ids.tsv"
        )
    dev = {
        tuple(row.values.values())
        for row in table_files.read(ids, header=_MRPC_IDS, quoting="none").rows
    }
    rows = [
        row
        for row in table.rows
        if is_dev
        == (
            tuple(
                table_files.text_of(table, row, column) for column in _MRPC_IDS
            )
            in dev
        )
    ]
    return classification.examples_of(
        table._replace(rows=rows), TASKS["MRPC"].columns
    )


def _read_unlabelled(task, path):
    """Examples with the server's row numbers; no row may be missing."""
    table = table_files.read(path, quoting="none")
    columns = task.columns._replace(label=None)
    if task.index in table.columns:
        columns = columns._replace(index=task.index)
    return classification.examples_of(table, columns)


def submission(task, examples, predictions):
    """The text of a file for GLUE's server.

    Args:
      task: a Task.
      examples: classification.Examples of a test set.
      predictions: [n] labels, or numbers of a regression.
    """

    def shown(value):
        # The scores of STS-B are from 0 to 5.
        return value if task.labels else f"{min(max(value, 0.0), 5.0):.3f}"

    return "index\tprediction\n" + "".join(
        f"{example.index}\t{shown(value)}\n"
        for example, value in zip(examples, predictions)
    )
