# SPDX-License-Identifier: Apache-2.0
"""What the fine-tuning scripts share: flags, steps, batches, training and
prediction.

A script brings its flags, its data and its graph:

    @dataclasses.dataclass(frozen=True)
    class MyConfig(finetuning.TaskConfig):      # its flags come on top
        train_file: str = command_line.flag("", "...")

    def losses(features, is_training, dropout_seed):   # features: see Sequences
        return {"loss": a sum over the batch, "accuracy": another sum}

    def predictions(features):
        return {"logits": [B, ...]}

and its `main` is then, with run, task and device from the flags:

    config, tokenizer = finetuning.begin(run, task)     # before data is read
    warm_start.check(run, config, ["tagging"],
                     finetuning.required(run, "cls/tagging/"), labels=5)
    train = Sequences(...) if run.do_train else None
    tuning = finetuning.FineTuning(
        finetuning.Model(losses, predictions), train, config=config, run=run,
        task=task, device=device, head="tagging")
    if run.do_train:
        tuning.train()
    if task.do_predict and device.rank == 0:
        for index, outputs in tuning.predict(test):
            outputs["logits"]                          # [...]
    device.close()
"""

import dataclasses
import os
import re
import typing

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

import tokenization
from common import command_line, errors, worker_pool
from training import (
    checkpoints,
    input_pipeline,
    logs,
    loop,
    model_directory,
    preflight,
    run_config,
    tensorflow_errors,
    train_step,
    warm_start,
)
from weights import names as weight_names


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Flags of every fine-tuning script, on top of training.RunConfig."""

    vocab_file: str = command_line.flag("", "The tokenizer's vocab.json.")
    merges_file: str = command_line.flag("", "The tokenizer's merges.txt.")
    do_lower_case: bool = command_line.flag(
        False, "Lower-case all text; RoBERTa's vocabulary is cased."
    )
    do_predict: bool = command_line.flag(False, "Whether to predict.")
    predict_batch_size: int = command_line.flag(
        8, "Sequences of a batch in prediction.", lower=1
    )
    num_train_epochs: float = command_line.flag(
        2.0, "Passes over the training features.", lower=0, upper=100000
    )
    warmup_proportion: float = command_line.flag(
        0.06,
        "Share of the steps over which the learning rate rises.",
        lower=0,
        upper=1,
    )
    num_workers: int = command_line.flag(
        0,
        "Processes that tokenize; 0 takes all cores.",
        lower=0,
        upper=worker_pool.MAX_WORKERS,
    )


Sequences = input_pipeline.Sequences


def count_sequences(features):
    """The weight of a batch whose loss is a mean over its features."""
    return tf.cast(tf.shape(features["input_ids"])[0], tf.float32)


class Model(typing.NamedTuple):
    """A task's graph.

    Attributes:
      losses: function (features of one micro-batch, is_training,
        dropout_seed int32 [2]) -> {name: float32 scalar}, sums over the
        micro-batch, "loss" among them.
      predictions: function (features) -> {name: [B, ...]}.
      weight: function (features) -> float32 scalar, what the sums are divided
        by: the number of sequences, or of labelled tokens.
      chance: the loss of a model that looks at no text, where a run that is
        stuck there should be noticed.
    """

    losses: typing.Callable
    predictions: typing.Callable
    weight: typing.Callable = count_sequences
    chance: typing.Optional[float] = None


def begin(run, task, *, others=()):
    """Sets up logging and reads the model's config and tokenizer.

    Flags that do not go together are refused, before data is read.

    Args:
      run: training.RunConfig.
      task: TaskConfig.
      others: names of flags beside do_train and do_predict that are work to
        do, such as do_eval.

    Returns:
      (modeling.RobertaConfig, tokenization.RobertaTokenizer).

    Raises:
      errors.UserError: there is nothing to do, no checkpoint to do it with, or
        vocabulary, lengths and model do not belong together.
    """
    logs.set_up_logging(run)
    config = run_config.model_config(run)
    tokenizer = tokenization.RobertaTokenizer(
        task.vocab_file, task.merges_file, do_lower_case=task.do_lower_case
    )
    wanted = ("do_train", *others, "do_predict")
    if not (run.do_train or any(getattr(task, name) for name in wanted[1:])):
        raise errors.UserError(
            "nothing to do: give "
            f"{' or '.join('--%s=True' % name for name in wanted)}"
        )
    preflight.check_length(run.max_seq_length, config, run.bert_config_file)
    preflight.check_vocabulary(
        tokenizer, task.vocab_file, config, run.bert_config_file
    )
    if not (
        run.do_train
        or run.init_checkpoint
        or checkpoints.newest(run.output_dir)
    ):
        raise errors.UserError(
            f"{run.output_dir} holds no checkpoint to predict with; name one "
            "with --init_checkpoint, or train with --do_train=True"
        )
    return config, tokenizer


def required(run, head):
    """The pattern of variables that --init_checkpoint must hold.

    Without training, an untrained head would answer at random.

    Args:
      run: training.RunConfig.
      head: how the names of the head's variables begin, such as "cls/squad/".
    """
    if run.do_train:
        return warm_start.ENCODER
    return re.compile(warm_start.ENCODER.pattern + "|" + re.escape(head))


def trained_config(run):
    """config.json of the checkpoint that is gone on with or predicted with.

    Returns:
      The JSON object; None where training begins, and labels with it.
    """
    if checkpoints.newest(run.output_dir):
        return model_directory.read_config(
            os.path.join(run.output_dir, "config.json")
        )
    return (
        None
        if run.do_train
        else model_directory.read_config(run.bert_config_file)
    )


def schedule(count, run, task, device):
    """(num_train_steps, num_warmup_steps), counted in features.

    Args:
      count: features of the training data.
      run: training.RunConfig.
      task: TaskConfig.
      device: an environment's device.
    """
    global_batch = run.batch_size * device.world_size
    steps = max(1, int(count * task.num_train_epochs / global_batch))
    warmup = min(int(steps * task.warmup_proportion), steps - 1)
    tf.logging.info(
        "features=%d epochs=%g num_train_steps=%d num_warmup_steps=%d",
        count,
        task.num_train_epochs,
        steps,
        warmup,
    )
    return steps, warmup


def train_batches(sequences, config, run, device):
    """input_pipeline.FeatureBatches of like lengths, in a random order."""
    order = input_pipeline.LengthPools(
        sequences.lengths,
        batch_size=run.batch_size * device.world_size,
        seed=run.random_seed,
        is_shuffled=not run.npu_bert_debug,
    )
    return input_pipeline.FeatureBatches(
        sequences,
        order,
        pad_token_id=config.pad_token_id,
        batch_size=run.batch_size,
        max_length=run.max_seq_length if device.static_shapes else None,
        rank=device.rank,
    )


def predict_batches(sequences, config, run, task, device):
    """(FeatureBatches of all sequences, each once, and how many batches).

    The graph sees their ids alone.
    """
    order = input_pipeline.LongestFirst(
        sequences.lengths, task.predict_batch_size
    )
    batches = input_pipeline.FeatureBatches(
        sequences._replace(values={}, token_values={}),
        order,
        pad_token_id=config.pad_token_id,
        batch_size=task.predict_batch_size,
        max_length=run.max_seq_length if device.static_shapes else None,
    )
    return batches, order.steps


class FineTuning:
    """One fine-tuning run: trains a task's model, and predicts with it.

    Making one checks memory and disk, and makes the output directory.
    """

    def __init__(
        self,
        model,
        train,
        *,
        config,
        run,
        task,
        device,
        head,
        config_values=None,
    ):
        """
        Args:
          model: Model.
          train: Sequences to train on, None without training.
          config: modeling.RobertaConfig.
          run: training.RunConfig.
          task: TaskConfig.
          device: an environment's device.
          head: the model's head, a key of weight_names.PARTS.
          config_values: {key: value} that config.json holds besides the
            model's own, such as the labels.
        """
        self._config, self._run, self._task = config, run, task
        self._device, self._model, self._train = device, model, train
        choices = train.choices if train is not None else None
        for line in preflight.check_run(
            run, config, device, head, predictions=0, choices=choices or 1
        ):
            tf.logging.info("%s", line)
        model_directory.prepare_output(
            run,
            config,
            device.rank,
            config_values,
            model_directory.TokenizerFiles(
                task.vocab_file, task.merges_file, task.do_lower_case
            ),
        )
        steps, warmup = 1, 0
        if train is not None:
            steps, warmup = schedule(len(train.lengths), run, task, device)
        head_names = [
            variable.tf for variable in weight_names.variables({head}, config)
        ]
        self._training = run_config.Training(
            config, run, device, steps, warmup, head_names
        )
        self._estimator = device.estimator(self._model_fn, run, steps)

    def _model_fn(self, features, labels, mode, params):
        del labels, params
        model = self._model
        if mode == tf.estimator.ModeKeys.TRAIN:
            losses = train_step.Losses(model.losses, model.weight, model.chance)
            return train_step.train_spec(losses, features, self._training)
        outputs = dict(model.predictions(features), index=features["index"])
        warm_start.load_initial(self._run)
        return tf.estimator.EstimatorSpec(mode, predictions=outputs)

    def train(self):
        """Trains, resuming a run in output_dir."""
        batches = train_batches(
            self._train, self._config, self._run, self._device
        )
        loop.train(self._estimator, batches, self._training)

    def predict(self, sequences):
        """Goes once through all sequences, the longest ones first.

        Each call builds the graph anew: predict several files in one.

        Args:
          sequences: Sequences.

        Yields:
          (index, {name: array [...]}), what the model's `predictions` gave.
        """
        batches, steps = predict_batches(
            sequences, self._config, self._run, self._task, self._device
        )
        with tensorflow_errors.reported(batches):
            outputs = self._estimator.predict(
                lambda params: input_pipeline.dataset(batches, 0, steps),
                yield_single_examples=False,
            )
            for batch in tqdm.tqdm(
                outputs,
                total=steps,
                desc="predict",
                unit="batch",
                mininterval=2.0,
            ):
                indices = batch.pop("index")
                for row in np.flatnonzero(indices >= 0):
                    yield (
                        int(indices[row]),
                        {name: values[row] for name, values in batch.items()},
                    )
