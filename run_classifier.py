# SPDX-License-Identifier: Apache-2.0
r"""Fine-tunes RoBERTa on texts or pairs of texts with labels, or with numbers.

    python run_classifier.py --task=RTE --data_dir=glue/RTE \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --init_checkpoint=roberta.ckpt \
      --do_train=True --do_eval=True --do_predict=True --output_dir=output

GLUE's tasks are read in their own formats; --task=generic reads any table by
its column names.
"""

import common.startup

import dataclasses
import json
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

import device as devices
import environment
import modeling
from common import command_line, errors, files
from tasks import (
    classification,
    finetuning,
    glue,
    sequences,
    table_files,
    task_scores,
)
from training import eval_results, run_config, warm_start

GENERIC = "generic"


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(finetuning.TaskConfig, table_files.ColumnConfig):
    """Flags of this script, including those of every fine-tuning script."""

    task: str = command_line.flag(
        GENERIC,
        "A task of GLUE, or generic for your own tables.",
        choices=(GENERIC, *glue.TASKS),
        group=command_line.FIRST,
    )
    do_eval: bool = command_line.flag(
        False, "Whether to score the development set."
    )
    data_dir: str = command_line.flag(
        "", "GLUE: the task's directory, with train.tsv, dev.tsv, test.tsv."
    )
    train_file: str = command_line.flag(
        "", "Table to train on: .tsv, .csv or .jsonl."
    )
    eval_file: str = command_line.flag("", "Table to score.")
    predict_file: str = command_line.flag("", "Table to predict labels for.")
    diagnostic_file: str = command_line.flag(
        "",
        "MNLI: the diagnostic set (AX). Default: diagnostic.tsv in "
        "data_dir, or in diagnostic or AX beside it, if it exists.",
        group=command_line.DATA,
    )
    label_column: str = command_line.flag("label", "The column of the label.")
    labels: str = command_line.flag(
        "",
        "All labels, comma separated, in the order of their ids. Default: "
        "the checkpoint's, else those of train_file, sorted.",
    )
    regression: bool = command_line.flag(
        False, "Whether labels are numbers to predict."
    )
    multi_label: bool = command_line.flag(
        False,
        "Whether a text has any number of labels, none too: comma separated "
        "in its column, or a list in .jsonl. Default: as in training.",
    )
    label_threshold: float = command_line.flag(
        0.5,
        "multi_label: the probability above which a label is predicted.",
        lower=0,
        upper=1,
    )
    metrics: str = command_line.flag(
        "",
        "Metrics, comma separated: accuracy, f1 (of the second label), "
        "macro_f1, matthews_correlation; of several labels micro_f1, "
        "macro_f1, exact_match; pearson, spearman. Default: the task's; "
        "accuracy; of several labels or a regression all of theirs.",
    )

    def __post_init__(self):
        generic = [
            name
            for name in (
                "train_file",
                "eval_file",
                "predict_file",
                "labels",
                "regression",
                "multi_label",
                "text_pair_column",
            )
            if getattr(self, name)
        ]
        if self.is_glue and generic:
            raise errors.UserError(
                f"--{generic[0]} is given with --task={self.task}, which has "
                "GLUE's files and labels; pass --data_dir alone, or "
                "--task=generic"
            )
        if self.data_dir and not self.is_glue:
            raise errors.UserError(
                "--data_dir is given with --task=generic; pass --task with one "
                "of GLUE's tasks, or --train_file, --eval_file and "
                "--predict_file"
            )
        if self.label_column in (self.text_column, self.text_pair_column):
            raise errors.UserError(
                f"--label_column={self.label_column} is also a text column, "
                "where the model would read the label; pass another column"
            )
        for name in ("labels", "multi_label"):
            if self.regression and getattr(self, name):
                raise errors.UserError(
                    f"--{name} and --regression are both given; a regression "
                    "has numbers, no labels: pass one of them"
                )

    @property
    def is_glue(self):
        return self.task != GENERIC

    def metrics_for(
        self, labels: classification.Labels
    ) -> typing.Tuple[str, ...]:
        """Names of the metrics for the labels of a run."""
        if self.metrics:
            return tuple(filter(None, self.metrics.split(",")))
        if self.is_glue:
            return glue.TASKS[self.task].metrics
        if labels.are_several:
            return task_scores.OF_SETS
        return task_scores.OF_NUMBERS if labels.is_regression else ("accuracy",)


_Examples = typing.List[classification.Example]


class Data(typing.NamedTuple):
    """Examples for training, evaluation and prediction."""

    train: _Examples
    # (suffix of the metrics, examples)
    evaluation: typing.List[typing.Tuple[str, _Examples]]
    # (file name, examples)
    predict: typing.List[typing.Tuple[str, _Examples]]


def read_data(run: run_config.RunConfig, task: ClassifierConfig) -> Data:
    """Reads the files that the flags name."""
    read = _read_glue if task.is_glue else _read_tables
    train, evaluation, predicted = read(task)
    return Data(
        train() if run.do_train else [],
        evaluation() if task.do_eval or run.evaluates else [],
        predicted() if task.do_predict else [],
    )


def _read_glue(task):
    """Functions that read the parts of Data."""
    name, directory = task.task, task.data_dir
    if not directory:
        raise errors.UserError(
            f"--data_dir is not given; pass the directory of {name}'s files"
        )
    return (
        lambda: glue.read_train(name, directory),
        lambda: glue.read_evaluation(name, directory),
        lambda: glue.read_test(name, directory, task.diagnostic_file),
    )


def _read_tables(task):
    """Functions that read the parts of Data."""
    return (
        lambda: _read_table(task, "train_file"),
        lambda: [("", _read_table(task, "eval_file"))],
        lambda: [("predictions.jsonl", _read_table(task, "predict_file"))],
    )


def _read_table(task, flag):
    path = getattr(task, flag)
    if not path:
        raise errors.UserError(
            f"--{flag} is not given; pass a .tsv, .csv or .jsonl file"
        )
    table = table_files.read(path, quoting=task.quoting)
    others = (task.text_column, task.label_column)
    has_pairs = "text_b" in table.columns and "text_b" not in others
    return classification.examples_of(
        table,
        classification.Columns(
            task.text_column,
            task.text_pair_column or ("text_b" if has_pairs else None),
            None if flag == "predict_file" else task.label_column,
            task.index_column or None,
        ),
        task.multi_label,
    )


def as_trained(
    task: ClassifierConfig, saved: typing.Optional[typing.Mapping]
) -> ClassifierConfig:
    """The flags, with --multi_label where the checkpoint has several labels.

    Args:
      task: flags.
      saved: config.json of the checkpoint, None in a new run.

    Raises:
      errors.UserError: the checkpoint's texts have one label, or numbers.
    """
    kind = (saved or {}).get("problem_type")
    is_several = kind == classification.SEVERAL_LABELS
    if is_several and not task.is_glue and not task.regression:
        return dataclasses.replace(task, multi_label=True)
    if is_several or kind and task.multi_label:
        names = ("multi_label", "regression", "task")
        given = next(name for name in names if getattr(task, name))
        raise errors.UserError(
            f"the checkpoint was trained for {kind}, but --{given} is given; "
            "remove it, or use another --output_dir to train another model"
        )
    return task


def labels_of_run(
    run: run_config.RunConfig, task: ClassifierConfig, train: _Examples
) -> classification.Labels:
    """The labels of a run.

    Raises:
      errors.UserError: the requested labels are not the checkpoint's.
    """
    requested = None
    if task.regression:
        requested = classification.Labels(())
    elif task.labels:
        requested = classification.named_labels(task.labels)
    elif task.is_glue:
        requested = classification.Labels(glue.TASKS[task.task].labels)
    saved = classification.labels_of_config(finetuning.trained_config(run))
    if train and saved is None and requested is None:
        labels = classification.labels_in(train)
    else:
        labels = classification.decide_labels(
            saved, requested, finetuning.config_file(run)
        )
    if task.multi_label:
        labels = labels._replace(threshold=task.label_threshold)
    elif task.label_threshold != ClassifierConfig.label_threshold:
        tf.logging.warning(
            "--label_threshold=%g has no effect without --multi_label",
            task.label_threshold,
        )
    return labels


def build_model(
    setup: finetuning.Setup,
    device: devices.Device,
    labels: classification.Labels,
    chance: typing.Optional[float] = None,
) -> finetuning.Model:
    """The model with cross entropy, or with a regression's squared error.

    Of several labels, sigmoid's cross entropy is averaged over the labels.

    Source: Devlin et al. 2018, section 4.1; Liu et al. 2019, section 5.1.
    """

    def outputs(features, hidden, dropout_seed):
        logits = modeling.classification_logits(
            setup.config,
            finetuning.first_tokens(features, hidden, device.kernels),
            labels.outputs,
            device.kernels,
            dropout_seed=dropout_seed,
        )
        return {"outputs": logits}  # [B, L]

    def sums(features, outputs):
        logits, label = outputs["outputs"], features["label"]
        if labels.is_regression:
            squares = tf.square(logits[:, 0] - label)
            kept = finetuning.without_empty(features, squares)
            return {"loss": tf.reduce_sum(kept)}
        if labels.are_several:
            return finetuning.label_set_sums(logits, label, features)
        return finetuning.label_sums(logits, label)

    head = finetuning.Head("classification", outputs, sums, chance=chance)
    return finetuning.Model(setup, device, head)


def sequences_of(
    name: str,
    examples: _Examples,
    setup: finetuning.Setup,
    labels: typing.Optional[classification.Labels] = None,
) -> finetuning.Sequences:
    """Sequences of examples, with the ids of their labels if given.

    Args:
      name: for the log.
      examples: texts and pairs.
      setup: the run.
      labels: all labels.
    """
    encoded = sequences.encode(
        [(example.text, example.pair) for example in examples],
        setup.tokenizer,
        setup.run.max_seq_length,
        num_workers=setup.task.num_workers,
    )
    tf.logging.info(
        "%s: examples=%d truncated=%d cut_tokens=%d",
        name,
        len(examples),
        encoded.truncated,
        encoded.cut_tokens,
    )
    return finetuning.Sequences(
        encoded.sequences.__getitem__,
        np.array([len(ids) for ids in encoded.sequences]),
        {"label": labels.ids(examples)} if labels else {},
    )


def evaluation_results(
    labels: classification.Labels,
    metrics: typing.Iterable[str],
    sets: typing.Sequence[typing.Tuple[str, _Examples]],
    outputs: typing.Sequence[np.ndarray],
) -> typing.Dict[str, float]:
    """{metric with its set's suffix: score}, including the loss.

    Args:
      labels: all labels.
      metrics: names of task_scores.METRICS.
      sets: (suffix, examples).
      outputs: float [n, L] of each set.
    """
    results = {}
    for (suffix, examples), values in zip(sets, outputs):
        ids = labels.ids(examples)
        if labels.is_regression:
            predicted = values[:, 0]
        elif labels.are_several:
            predicted = classification.sigmoid(values) > labels.threshold
        else:
            predicted = values.argmax(axis=1)
        scores = task_scores.scores(metrics, ids, predicted)
        scores.update(
            loss=classification.mean_loss(labels, values, ids),
            examples=len(ids),
        )
        results.update({name + suffix: value for name, value in scores.items()})
    return results


def predictions_text(
    task: ClassifierConfig,
    labels: classification.Labels,
    examples: _Examples,
    outputs: np.ndarray,
) -> str:
    """The text of a file for GLUE's server, or JSON lines."""
    if task.is_glue:
        return glue.submission(
            glue.TASKS[task.task],
            examples,
            classification.predicted(labels, outputs),
        )
    return "".join(
        json.dumps(line, ensure_ascii=False) + "\n"
        for line in classification.prediction_lines(labels, examples, outputs)
    )


def evaluate_and_predict(
    tuning: finetuning.FineTuning,
    data: Data,
    labels: classification.Labels,
    metrics: typing.Iterable[str],
) -> None:
    """Writes eval_results.txt and the files of predictions."""
    run, task = tuning.setup.run, tuning.setup.task
    evaluated = data.evaluation if task.do_eval else []
    sets = [examples for _, examples in evaluated + data.predict]
    outputs = np.split(
        tuning.outputs(
            sequences_of(
                "evaluation and prediction",
                [example for examples in sets for example in examples],
                tuning.setup,
            ),
            labels.outputs,
        ),
        np.cumsum([len(examples) for examples in sets])[:-1],
    )
    if evaluated:
        results = evaluation_results(labels, metrics, evaluated, outputs)
        eval_results.report_results(
            run, results, warm_start.global_step(tuning.setup.source)
        )
    for (name, examples), values in zip(
        data.predict, outputs[len(evaluated) :]
    ):
        path = os.path.join(run.output_dir, name)
        files.write_text(path, predictions_text(task, labels, examples, values))
        tf.logging.info("%d predictions in %s", len(examples), path)


def score_with(
    tuning: finetuning.FineTuning,
    sets: typing.Sequence[typing.Tuple[str, _Examples]],
    labels: classification.Labels,
    metrics: typing.Sequence[str],
) -> None:
    """Scores while training by the first metric of the first set."""
    ends = np.cumsum([len(examples) for _, examples in sets])

    def score(outputs):
        return evaluation_results(
            labels, metrics, sets, np.split(outputs["outputs"], ends[:-1])
        )

    examples = [example for _, part in sets for example in part]
    tuning.score_with(
        sequences_of("evaluation", examples, tuning.setup),
        score,
        metrics[0] + sets[0][0],
    )


def define_flags() -> None:
    """Declares the flags of this script."""
    run_config.define_flags(
        ClassifierConfig,
        {
            "learning_rate": 1e-5,
            "train_batch_size": 16,
            "weight_decay_rate": 0.1,
        },
        num_train_epochs=10.0,
    )


def main(_):
    run, task, options = run_config.from_flags(ClassifierConfig, flags.FLAGS)
    setup = finetuning.begin(run, task, "cls/classification/")
    task = as_trained(task, finetuning.trained_config(setup.source))
    # All input is read and checked before anything is written.
    data = read_data(run, task)
    labels = labels_of_run(setup.source, task, data.train)
    for examples in [data.train] + [part for _, part in data.evaluation]:
        labels.ids(examples)
    metrics = task.metrics_for(labels) if data.evaluation else ()
    task_scores.check(metrics, len(labels.names), labels.are_several)
    warm_start.check(
        setup.source,
        setup.config,
        ["classification"],
        "cls/classification/",
        labels=labels.outputs,
    )
    device = environment.create(options)
    train = chance = None
    if run.do_train:
        classification.log_labels(labels, data.train)
        train = sequences_of("training", data.train, setup, labels)
        chance = classification.chance_loss(labels, train.values["label"])
    tuning = finetuning.FineTuning(
        build_model(setup, device, labels, chance),
        train,
        labels.config_values(),
        labels.names,
    )
    if run.evaluates:
        score_with(tuning, data.evaluation, labels, metrics)
    tuning.train()
    if (task.do_eval or task.do_predict) and device.rank == 0:
        evaluate_and_predict(tuning, data, labels, metrics)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
