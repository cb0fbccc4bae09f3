# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes RoBERTa on texts or pairs of texts with labels, or with numbers.

    python run_classifier.py --task=RTE --data_dir=glue/RTE \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --init_checkpoint=roberta.ckpt \
      --do_train=True --do_eval=True --do_predict=True --output_dir=output

GLUE's tasks are read in their own formats; --task=generic reads any table by
the names of its columns.
"""

import dataclasses
import json
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

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

FLAGS = flags.FLAGS
GENERIC = "generic"


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(finetuning.TaskConfig):
    """Flags of this script, those of every fine-tuning script among them."""

    task: str = command_line.flag(
        GENERIC,
        "A task of GLUE, or generic for tables of your own.",
        choices=(GENERIC, *glue.TASKS),
    )
    do_eval: bool = command_line.flag(
        False, "Whether to score the development set."
    )
    data_dir: str = command_line.flag(
        "", "GLUE: the task's directory, with train.tsv, dev.tsv, test.tsv."
    )
    diagnostic_file: str = command_line.flag(
        "",
        "MNLI: the diagnostic set (AX). Default: diagnostic.tsv in "
        "data_dir, or in diagnostic or AX beside it, if there.",
    )
    train_file: str = command_line.flag(
        "", "Table to train on: .tsv, .csv or .jsonl."
    )
    eval_file: str = command_line.flag("", "Table to score.")
    predict_file: str = command_line.flag("", "Table to predict labels for.")
    text_column: str = command_line.flag("text", "The column of the text.")
    text_pair_column: str = command_line.flag(
        "", "The column of the second text of a pair."
    )
    label_column: str = command_line.flag("label", "The column of the label.")
    index_column: str = command_line.flag(
        "",
        "The column whose value names a row in the predictions. Default: "
        "rows are counted from 0.",
    )
    quoting: str = command_line.flag(
        "auto",
        "Quotes around fields: standard, none, or auto, which is "
        "standard for .csv and none for .tsv.",
        choices=table_files.QUOTING,
    )
    labels: str = command_line.flag(
        "",
        "All labels, comma separated, in the order of their ids. Default: "
        "the checkpoint's, else those of train_file, sorted.",
    )
    regression: bool = command_line.flag(
        False, "Whether labels are numbers to come close to."
    )
    metrics: str = command_line.flag(
        "",
        "Metrics, comma separated: accuracy, f1 (of the second label), "
        "macro_f1, matthews_correlation, pearson, spearman. Default: the "
        "task's; accuracy; for a regression pearson and spearman.",
    )

    def __post_init__(self):
        own = [
            name
            for name in (
                "train_file",
                "eval_file",
                "predict_file",
                "labels",
                "regression",
                "text_pair_column",
            )
            if getattr(self, name)
        ]
        if self.is_glue and own:
            raise errors.UserError(
                f"--{own[0]} is given with --task={self.task}, whose files and "
                "labels are GLUE's; give --data_dir alone, or --task=generic"
            )
        if self.data_dir and not self.is_glue:
            raise errors.UserError(
                "--data_dir is given with --task=generic; name one of GLUE's "
                "tasks with --task, or files with --train_file, --eval_file "
                "and --predict_file"
            )
        if self.label_column in (self.text_column, self.text_pair_column):
            raise errors.UserError(
                f"--label_column={self.label_column} is also a column of "
                "texts; a model would read the label off the text"
            )
        if self.labels and self.regression:
            raise errors.UserError(
                "--labels and --regression are both given; "
                "a regression has numbers, no labels"
            )

    @property
    def is_glue(self):
        return self.task != GENERIC

    def metrics_for(self, labels):
        """Names of the metrics for some classification.Labels."""
        given = tuple(filter(None, self.metrics.split(",")))
        if given:
            return given
        if self.is_glue:
            return glue.TASKS[self.task].metrics
        return task_scores.OF_NUMBERS if labels.is_regression else ("accuracy",)


class Data(typing.NamedTuple):
    """Examples to train on, to score and to predict."""

    train: list
    evaluation: list  # of (suffix of the metrics, examples)
    predict: list  # of (file name, examples)


def read_data(run, task):
    """The Data that the flags ask for."""
    if task.is_glue:
        if not task.data_dir:
            raise errors.UserError(
                f"--data_dir is not given; name the directory of {task.task}'s "
                "files"
            )
        return Data(
            glue.read_train(task.task, task.data_dir) if run.do_train else [],
            glue.read_evaluation(task.task, task.data_dir)
            if task.do_eval
            else [],
            glue.read_test(task.task, task.data_dir, task.diagnostic_file)
            if task.do_predict
            else [],
        )
    return Data(
        _read_table(task, "train_file", True) if run.do_train else [],
        [("", _read_table(task, "eval_file", True))] if task.do_eval else [],
        [("predictions.jsonl", _read_table(task, "predict_file", False))]
        if task.do_predict
        else [],
    )


def _read_table(task, flag, is_labelled):
    path = getattr(task, flag)
    if not path:
        raise errors.UserError(
            f"--{flag} is not given; name a .tsv, .csv or .jsonl file"
        )
    return classification.examples_of(
        table_files.read(path, quoting=task.quoting),
        classification.Columns(
            task.text_column,
            task.text_pair_column or None,
            task.label_column if is_labelled else None,
            task.index_column or None,
        ),
    )


def decide_labels(run, task, train):
    """The classification.Labels of a run.

    A checkpoint's labels keep their order; only a new run's can be found in
    the training data.

    Raises:
      errors.UserError: the labels wanted are not the checkpoint's.
    """
    wanted = None
    if task.regression:
        wanted = classification.Labels(())
    elif task.labels:
        wanted = classification.Labels(classification.named_labels(task.labels))
    elif task.is_glue:
        wanted = classification.Labels(glue.TASKS[task.task].labels)
    values = finetuning.trained_config(run)
    saved = None if values is None else classification.labels_of_config(values)
    if saved is None:
        if wanted is None and not train:
            raise errors.UserError(
                f"{run.bert_config_file} names no labels (id2label); give them "
                "with --labels, in the order of their ids, or "
                "--regression=True"
            )
        return wanted or classification.labels_in(train)
    if wanted is None:
        return saved
    by_name = {name.lower(): name for name in wanted.names}
    if set(by_name) == {name.lower() for name in saved.names}:
        return classification.Labels(
            tuple(by_name[name.lower()] for name in saved.names)
        )
    if len(wanted.names) == len(saved.names) and all(
        name.startswith("LABEL_") for name in saved.names
    ):
        return wanted
    raise errors.UserError(
        "the checkpoint tells apart %s, but %s is wanted; train another one "
        "in another --output_dir"
        % tuple(
            ", ".join(labels.names) or "numbers (a regression)"
            for labels in (saved, wanted)
        )
    )


def build_model(config, run, labels, device, chance=None):
    """The finetuning.Model: cross entropy, or the squared error of numbers.

    Source: Devlin et al. 2018, section 4.1; Liu et al. 2019, section 5.1.
    """

    def outputs(features, dropout_seed=None, **options):
        model = modeling.RobertaModel(
            config,
            input_ids=features["input_ids"],
            kernels=device.kernels,
            is_training=dropout_seed is not None,
            dropout_seed=dropout_seed,
            **options,
        )
        return modeling.classification_logits(
            config,
            model.get_sequence_output(),
            labels.outputs,
            device.kernels,
            dropout_seed=dropout_seed,
        )

    def losses(features, is_training, dropout_seed):
        drops = is_training and not run.npu_bert_debug
        logits = outputs(
            features,
            dropout_seed if drops else None,
            recompute_layers=run.recompute_layers,
        )
        label = features["label"]
        if labels.is_regression:
            return {"loss": tf.reduce_sum(tf.square(logits[:, 0] - label))}
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=label, logits=logits
        )
        right = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), label)
        return {
            "loss": tf.reduce_sum(entropies),
            "accuracy": tf.reduce_sum(tf.cast(right, tf.float32)),
        }

    return finetuning.Model(
        losses, lambda features: {"outputs": outputs(features)}, chance=chance
    )


def sequences_of(name, examples, tokenizer, run, task, labels=None):
    """finetuning.Sequences of examples, with their label ids if asked for."""
    encoded = sequences.encode(
        [(example.text, example.pair) for example in examples],
        tokenizer,
        run.max_seq_length,
        num_workers=task.num_workers,
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


def predict(tuning, sets, tokenizer, run, task, outputs):
    """The model's outputs for several lists of examples, in one pass.

    Args:
      sets: lists of examples.
      outputs: numbers an example.

    Returns:
      A list of float32 [n, outputs], one a list of examples.
    """
    examples = [example for each in sets for example in each]
    found = np.zeros([len(examples), outputs], np.float32)
    for index, values in tuning.predict(
        sequences_of(
            "evaluation and prediction", examples, tokenizer, run, task
        )
    ):
        found[index] = values["outputs"]
    return np.split(found, np.cumsum([len(each) for each in sets])[:-1])


def evaluation_results(labels, metrics, sets, outputs):
    """{metric with its set's suffix: score}, the loss among them.

    Args:
      sets: list of (suffix, examples).
      outputs: list of float [n, L].
    """
    results = {}
    for (suffix, examples), values in zip(sets, outputs):
        ids = labels.ids(examples)
        answers = (
            values[:, 0] if labels.is_regression else values.argmax(axis=1)
        )
        scores = task_scores.scores(metrics, ids, answers)
        scores.update(
            loss=classification.mean_loss(labels, values, ids),
            examples=len(ids),
        )
        results.update({name + suffix: value for name, value in scores.items()})
    return results


def write_predictions(run, task, labels, name, examples, outputs):
    """A file for GLUE's server, or JSON lines."""
    if task.is_glue:
        text = glue.submission(
            glue.TASKS[task.task],
            examples,
            classification.predicted(labels, outputs),
        )
    else:
        text = "".join(
            json.dumps(line, ensure_ascii=False) + "\n"
            for line in classification.prediction_lines(
                labels, examples, outputs
            )
        )
    path = os.path.join(run.output_dir, name)
    files.write_text(path, text)
    tf.logging.info("%d predictions in %s", len(examples), path)


def evaluate_and_predict(tuning, data, labels, metrics, tokenizer, run, task):
    """eval_results.txt and the files of predictions."""
    pairs = data.evaluation + data.predict
    outputs = predict(
        tuning,
        [examples for _, examples in pairs],
        tokenizer,
        run,
        task,
        labels.outputs,
    )
    if data.evaluation:
        results = evaluation_results(labels, metrics, data.evaluation, outputs)
        eval_results.report_results(run, results)
    for (name, examples), values in zip(
        data.predict, outputs[len(data.evaluation) :]
    ):
        write_predictions(run, task, labels, name, examples, values)


def main(_):
    run = command_line.build(run_config.RunConfig, FLAGS)
    task = command_line.build(ClassifierConfig, FLAGS)
    options = command_line.build(environment.DeviceConfig, FLAGS)
    config, tokenizer = finetuning.begin(run, task, others=("do_eval",))
    # All input is read, and refused, before anything is written.
    data = read_data(run, task)
    labels = decide_labels(run, task, data.train)
    for examples in [data.train] + [each for _, each in data.evaluation]:
        labels.ids(examples)
    metrics = task.metrics_for(labels) if task.do_eval else ()
    task_scores.check(metrics, len(labels.names))
    warm_start.check(
        run,
        config,
        ["classification"],
        finetuning.required(run, "cls/classification/"),
        labels=labels.outputs,
    )
    device = environment.create(options)
    train = chance = None
    if run.do_train:
        train = sequences_of(
            "training", data.train, tokenizer, run, task, labels
        )
        chance = classification.chance_loss(labels, train.values["label"])
    tuning = finetuning.FineTuning(
        build_model(config, run, labels, device, chance),
        train,
        config=config,
        run=run,
        task=task,
        device=device,
        head="classification",
        config_values=labels.config_values(),
    )
    if run.do_train:
        tuning.train()
    if (task.do_eval or task.do_predict) and device.rank == 0:
        evaluate_and_predict(
            tuning, data, labels, metrics, tokenizer, run, task
        )
    device.close()


if __name__ == "__main__":
    command_line.define(
        run_config.RunConfig,
        learning_rate=1e-5,
        train_batch_size=16,
        weight_decay_rate=0.1,
    )
    command_line.define(ClassifierConfig, num_train_epochs=10.0)
    command_line.define(environment.DeviceConfig)
    command_line.run(main)
