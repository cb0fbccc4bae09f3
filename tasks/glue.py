# SPDX-License-Identifier: Apache-2.0
"""GLUE's tasks: files, columns, labels, metrics and names of submissions.

The files are those that GLUE's download script puts into one directory per
task; MRPC also in the form that its authors publish. Nothing in them is quoted.
Lines of QQP's training and development set with another number of fields are
skipped and counted, as in fairseq.

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
    suffix: str = ""  # of its metrics' names if a task has several


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


_Columns = classification.Columns
_SENTENCES = _Columns("sentence1", "sentence2", "label")
TASKS = {
    "CoLA": Task(
        _ZERO_ONE,
        _Columns("sentence", None, "label"),
        ("matthews_correlation",),
        test=_test("CoLA"),
        header=("source", "label", "star", "sentence"),
    ),
    "SST-2": Task(
        _ZERO_ONE,
        _Columns("sentence", None, "label"),
        ("accuracy",),
        test=_test("SST-2"),
    ),
    "MRPC": Task(
        _ZERO_ONE,
        _Columns("#1 String", "#2 String", "Quality"),
        ("accuracy", "f1"),
        test=_test("MRPC"),
    ),
    "STS-B": Task(
        (),
        _Columns("sentence1", "sentence2", "score"),
        ("pearson", "spearman"),
        test=_test("STS-B"),
    ),
    "QQP": Task(
        _ZERO_ONE,
        _Columns("question1", "question2", "is_duplicate"),
        ("accuracy", "f1"),
        test=_test("QQP"),
        index="id",
    ),
    # In the order of the published roberta-large-mnli.
    "MNLI": Task(
        ("contradiction", "neutral", "entailment"),
        _Columns("sentence1", "sentence2", "gold_label"),
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
        _Columns("question", "sentence", "label"),
        ("accuracy",),
        test=_test("QNLI"),
    ),
    "RTE": Task(_ENTAILMENT, _SENTENCES, ("accuracy",), test=_test("RTE")),
    "WNLI": Task(_ZERO_ONE, _SENTENCES, ("accuracy",), test=_test("WNLI")),
}
# Where the diagnostic set for models of MNLI may be.
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


_Examples = typing.List[classification.Example]


def read_train(name: str, data_dir: str) -> _Examples:
    """The labelled examples of a task's training set.

    Raises:
      errors.UserError: a file is not in the task's format.
      OSError: it cannot be read.
    """
    return _read_labelled(name, data_dir, "train.tsv")


def read_evaluation(
    name: str, data_dir: str
) -> typing.List[typing.Tuple[str, _Examples]]:
    """[(suffix, labelled examples)] of a task's development sets."""
    return [
        (split.suffix, _read_labelled(name, data_dir, split.file))
        for split in TASKS[name].evaluation
    ]


def read_test(
    name: str, data_dir: str, diagnostic_file: str = ""
) -> typing.List[typing.Tuple[str, _Examples]]:
    """[(the server's file name, examples)] of a task's test sets.

    Args:
      name: a key of TASKS.
      data_dir: the task's directory.
      diagnostic_file: MNLI's diagnostic set; "" searches for it in and beside
        data_dir.
    """
    paths = {
        split.submission: os.path.join(data_dir, split.file)
        for split in TASKS[name].test
    }
    if name == "MRPC":
        paths["MRPC.tsv"] = (
            _first_file(data_dir, "test.tsv", _MRPC_FILES["test"])
            or paths["MRPC.tsv"]
        )
    if name == "MNLI":
        path = diagnostic_file or _first_file(data_dir, *_DIAGNOSTIC_FILES)
        if path:
            paths["AX.tsv"] = path
    return [
        (submission, _read_unlabelled(TASKS[name], path))
        for submission, path in paths.items()
    ]


def _first_file(directory, *names):
    """The first path below a directory that exists, else None."""
    paths = [os.path.normpath(os.path.join(directory, name)) for name in names]
    return next(filter(os.path.exists, paths), None)


def _read_labelled(name, data_dir, file):
    task = TASKS[name]
    path = os.path.join(data_dir, file)
    if name == "MRPC" and not os.path.exists(path):
        return _read_mrpc(data_dir, is_dev=file == "dev.tsv")
    table = table_files.read(
        path, header=task.header, quoting="none", skips_irregular=True
    )
    return classification.examples_of(table, task.columns)


def _read_mrpc(data_dir, is_dev):
    """Training or development part of the file that MRPC's authors publish."""
    path = os.path.join(data_dir, _MRPC_FILES["train"])
    table = table_files.read(path, quoting="none")
    ids = _first_file(data_dir, *_MRPC_DEV_IDS)
    if ids is None:
        raise errors.UserError(
            f"{data_dir}: neither train.tsv and dev.tsv nor "
            f"{_MRPC_DEV_IDS[0]}, which lists the pairs of "
            f"{_MRPC_FILES['train']} in GLUE's development set; get GLUE's "
            "mrpc_dev_ids.tsv"
        )
    dev = {
        tuple(row.values.values())
        for row in table_files.read(ids, header=_MRPC_IDS, quoting="none").rows
    }

    pairs = [
        tuple(table_files.text_of(table, row, name) for name in _MRPC_IDS)
        for row in table.rows
    ]
    rows = [r for r, pair in zip(table.rows, pairs) if (pair in dev) == is_dev]
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


def submission(
    task: Task,
    examples: typing.Iterable[classification.Example],
    predictions: typing.Iterable[typing.Union[str, float]],
) -> str:
    """The text of a file for GLUE's server.

    Args:
      task: the task.
      examples: those of a test set.
      predictions: [n] labels, or numbers of a regression.
    """
    if not task.labels:  # the scores of STS-B are from 0 to 5
        predictions = [f"{min(max(v, 0.0), 5.0):.3f}" for v in predictions]
    return "index\tprediction\n" + "".join(
        f"{example.index}\t{value}\n"
        for example, value in zip(examples, predictions)
    )
