# SPDX-License-Identifier: Apache-2.0
"""What the fine-tuning scripts share: flags, steps, batches, training and
prediction.

A script declares its flags and its head:

    @dataclasses.dataclass(frozen=True)
    class MyConfig(finetuning.TaskConfig):      # adds flags
        train_file: str = command_line.flag("", "...")

    # features: see input_pipeline.FeatureBatches
    def outputs(features, hidden, dropout_seed):
        return {"outputs": [B, ...]}

    def sums(features, outputs):
        return {"loss": a sum over the batch, "accuracy": another sum}

and its `main` is then, with run and task from the flags:

    setup = finetuning.begin(run, task, "cls/tagging/")  # before data is read
    warm_start.check(setup.source, setup.config, ["tagging"],
                     "cls/tagging/", labels=5)
    train = Sequences(...) if run.do_train else None
    head = finetuning.Head("tagging", outputs, sums)
    tuning = finetuning.FineTuning(
        finetuning.Model(setup, device, head), train)
    tuning.train()                          # nothing without do_train
    if task.do_predict and device.rank == 0:
        for index, outputs in tuning.predict(test):
            outputs["outputs"]              # [...]
"""

import dataclasses
import hashlib
import itertools
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf

import configuration
import device as devices
import modeling
import tokenization
from common import command_line, errors, files, worker_pool
from training import (
    checkpoints,
    evaluation,
    input_pipeline,
    logs,
    loop,
    output_directory,
    packed_batches,
    preflight,
    run_config,
    run_record,
    tensorflow_errors,
    train_step,
    warm_start,
)
from weights import model_directory
from weights import names as weight_names


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Flags of every fine-tuning script, on top of training.RunConfig."""

    vocab_file: str = command_line.flag(
        "",
        "The tokenizer's vocab.json. Default, with --merges_file: those "
        "beside --init_checkpoint.",
        group=command_line.FIRST,
    )
    merges_file: str = command_line.flag("", "The tokenizer's merges.txt.")
    do_predict: bool = command_line.flag(False, "Whether to predict.")
    num_workers: int = command_line.flag(
        0,
        "Processes that tokenize; 0 takes all cores.",
        lower=0,
        upper=worker_pool.MAX_WORKERS,
        group=command_line.DATA,
    )
    do_lower_case: typing.Optional[bool] = command_line.flag(
        None,
        "Lower-case all text. Default: what tokenizer_config.json beside the "
        "checkpoint says, else False; RoBERTa's vocabulary is cased.",
        group=command_line.MODEL,
    )
    predict_batch_size: int = command_line.flag(
        8,
        "Sequences of a batch in prediction.",
        lower=1,
        group=command_line.TRAINING,
    )
    num_train_epochs: float = command_line.flag(
        2.0, "Passes over the training features.", lower=0, upper=100000
    )
    warmup_proportion: float = command_line.flag(
        0.06,
        "Fraction of the steps over which the learning rate rises.",
        lower=0,
        upper=1,
    )
    freeze_layers: int = command_line.flag(
        0,
        "Layers from below that are not trained, and with them the "
        "embeddings; 0 trains all.",
        lower=0,
    )


Sequences = input_pipeline.Sequences


class Setup(typing.NamedTuple):
    """What a run starts from; `begin` makes it."""

    run: run_config.RunConfig
    source: run_config.RunConfig  # whose checkpoint is restored
    task: TaskConfig  # with do_lower_case chosen
    config: configuration.RobertaConfig
    tokenizer: tokenization.RobertaTokenizer


def begin(run: run_config.RunConfig, task: TaskConfig, head: str) -> Setup:
    """Sets up logging and reads the model's config and tokenizer.

    Rejects flags that contradict each other before data is read.

    Args:
      run: flags.
      task: flags.
      head: prefix of the names of the head's variables, such as "cls/squad/".

    Raises:
      errors.UserError: there is nothing to do, no checkpoint to predict with,
        or tokenizer, lengths and model do not match.
    """
    logs.set_up_logging(run)
    _check_actions(run, task)
    run = warm_start.resolved(run)
    config = run_config.model_config(run)
    task = _with_tokenizer(run, task)
    if task.freeze_layers > config.num_hidden_layers:
        raise errors.UserError(
            f"--freeze_layers={task.freeze_layers}: the model has "
            f"{config.num_hidden_layers} layers; use that or less"
        )
    source = warm_start.source(run, head)
    flag = task.do_lower_case
    task = dataclasses.replace(
        task,
        do_lower_case=model_directory.choose_lower_case(
            flag, output_directory.models(source)
        ),
    )
    tokenizer = tokenization.RobertaTokenizer(*tokenizer_files(task))
    model_directory.check_length(
        run.max_seq_length, config, run.bert_config_file
    )
    model_directory.check_vocabulary(
        task.vocab_file, config, run.bert_config_file
    )
    output_directory.check_tokenizer(source, tokenizer_files(task))
    output_directory.check_lower_case(source, tokenizer, flag)
    return Setup(run, source, task, config, tokenizer)


def _check_actions(run, task):
    actions = [
        name for name in ("do_eval", "do_predict") if hasattr(task, name)
    ]
    if not (
        run.do_train
        or run.scores_checkpoints
        or any(getattr(task, name) for name in actions)
    ):
        choices = " or ".join(
            f"--{name}=True" for name in ("do_train", *actions)
        )
        raise errors.UserError(f"nothing to do: pass {choices}")
    if run.do_train and getattr(task, "train_file", ""):
        files.check_regular(
            task.train_file, "write its data to a file, since it is read twice"
        )


def _with_tokenizer(run, task):
    """The flags; names the tokenizer beside --init_checkpoint by default."""
    beside = model_directory.find_tokenizer(
        os.path.dirname(run.init_checkpoint) or "."
    )
    if (
        beside
        and run.init_checkpoint
        and not (task.vocab_file or task.merges_file)
    ):
        task = dataclasses.replace(
            task, vocab_file=beside.vocab_file, merges_file=beside.merges_file
        )
    for name in ("vocab_file", "merges_file"):
        if not getattr(task, name):
            raise errors.UserError(
                f"--{name} is missing; pass vocab.json and merges.txt of the "
                "checkpoint"
            )
    return task


def tokenizer_files(task: TaskConfig) -> model_directory.TokenizerFiles:
    """The tokenizer of a run."""
    return model_directory.TokenizerFiles(
        task.vocab_file, task.merges_file, bool(task.do_lower_case)
    )


def trained_config(
    run: run_config.RunConfig,
) -> typing.Optional[typing.Dict[str, typing.Any]]:
    """config.json of the checkpoint that is resumed or predicted with.

    Returns:
      The JSON object; None in a new training run, which has no labels yet.
    """
    if checkpoints.newest(run.output_dir):
        return output_directory.read_config(run.output_dir)
    if run.do_train:
        return None
    return files.read_json(config_file(run))


def config_file(run: run_config.RunConfig) -> str:
    """The config.json beside a run's checkpoint, else --bert_config_file."""
    checkpoint = checkpoints.newest(run.output_dir) or run.init_checkpoint
    beside = checkpoint and files.beside(checkpoint, model_directory.CONFIG)
    return beside or run.bert_config_file


def schedule(
    count: int, setup: Setup, device: devices.Device
) -> typing.Tuple[int, int]:
    """(num_train_steps, num_warmup_steps) for `count` training features."""
    task = setup.task
    steps = run_record.updates(setup.run, device, count * task.num_train_epochs)
    warmup = min(int(steps * task.warmup_proportion), steps - 1)
    tf.logging.info(
        "features=%d epochs=%g num_warmup_steps=%d",
        count,
        task.num_train_epochs,
        warmup,
    )
    return steps, warmup


def train_batches(
    sequences: Sequences,
    setup: Setup,
    device: devices.Device,
    plan: typing.Optional[packed_batches.Plan] = None,
) -> input_pipeline.Batches:
    """Batches of sequences of similar lengths, in a random order.

    With a plan they are packed, and the run's batch size counts rows.
    """
    run = setup.run
    if plan is not None:
        return packed_batches.PackedBatches(
            sequences,
            plan,
            pad_token_id=setup.config.pad_token_id,
            rows=run.batch_size,
            rank=device.rank,
            world_size=device.world_size,
        )
    order = input_pipeline.LengthPools(
        sequences.lengths,
        batch_size=run_record.order_batch(run, device),
        seed=run.random_seed,
        is_shuffled=not run.npu_bert_debug,
    )
    return input_pipeline.FeatureBatches(
        sequences,
        order,
        pad_token_id=setup.config.pad_token_id,
        batch_size=run.batch_size,
        max_length=run.max_seq_length if device.static_shapes else None,
        rank=device.rank,
        world_size=device.world_size,
    )


def predict_batches(
    sequences: Sequences, setup: Setup, device: devices.Device
) -> typing.Tuple[input_pipeline.Batches, int]:
    """(batches of all sequences, once each, without labels; how many)."""
    run, batch_size = setup.run, setup.task.predict_batch_size
    sequences = sequences._replace(values={}, token_values={})
    if run.pack_sequences:
        plan = packed_batches.Plan(sequences.lengths, run.max_seq_length)
        rows = plan.rows_of(batch_size)
        steps = -(-plan.rows // rows)
        packed = packed_batches.PackedBatches(
            sequences,
            plan,
            pad_token_id=setup.config.pad_token_id,
            rows=rows,
            steps=steps,
        )
        return packed, steps
    order = input_pipeline.LongestFirst(sequences.lengths, batch_size)
    batches = input_pipeline.FeatureBatches(
        sequences,
        order,
        pad_token_id=setup.config.pad_token_id,
        batch_size=batch_size,
        max_length=run.max_seq_length if device.static_shapes else None,
    )
    return batches, order.steps


# --- Graph ------------------------------------------------------------------


_Features = typing.Mapping[str, tf.Tensor]


def count_sequences(features: _Features) -> tf.Tensor:
    """The weight of a batch whose loss is a mean over its features."""
    if _is_packed(features):
        return tf.reduce_sum(labelled(features["index"]))
    return tf.cast(tf.shape(features["input_ids"])[0], tf.float32)


def _is_packed(features):
    return "sequence_starts" in features


# Heads see the sequences of a packed batch (packed_batches.PackedBatches) as
# those of an unpacked one, B = R * P, with the three functions that follow.
# They change nothing in a batch that is not packed.


def without_empty(features: _Features, values: tf.Tensor) -> tf.Tensor:
    """values [B], with 0 in empty places of a packed batch."""
    if not _is_packed(features):
        return values
    return values * tf.cast(labelled(features["index"]), values.dtype)


def first_tokens(
    features: _Features, hidden: tf.Tensor, kernels: modeling.Kernels
) -> tf.Tensor:
    """[R, S, H] -> [B, 1, H], the `<s>` of each sequence."""
    if not _is_packed(features):
        return hidden
    rows = tf.reshape(hidden, [-1, hidden.shape.as_list()[2]])
    first = kernels.gather(rows, _first_rows(features) + features["offsets"])
    return first[:, tf.newaxis]


def by_sequence(
    features: _Features,
    values: tf.Tensor,
    kernels: modeling.Kernels,
    fill: float = 0.0,
) -> tf.Tensor:
    """[R, S, ...] -> [B, S, ...], the tokens of each sequence, then fill."""
    if not _is_packed(features):
        return values
    rows, length = values.shape.as_list()[:2]
    columns = tf.range(length)
    places = features["offsets"][:, tf.newaxis] + columns
    places = tf.minimum(places, length - 1)
    places += _first_rows(features)[:, tf.newaxis]  # [B, S]
    own = kernels.gather(
        tf.reshape(values, [rows * length, -1]), tf.reshape(places, [-1])
    )
    inside = columns < features["lengths"][:, tf.newaxis]
    inside = tf.cast(tf.reshape(inside, [-1, 1]), values.dtype)
    own = own * inside + (1.0 - inside) * fill
    return tf.reshape(own, [-1] + values.shape.as_list()[1:])


def _first_rows(features):
    """int32 [B]: where each sequence's row begins among [R * S] tokens."""
    rows, length = features["input_ids"].shape.as_list()
    count = features["index"].shape.as_list()[0]
    return tf.range(count) // (count // rows) * length


def labelled(labels: tf.Tensor) -> tf.Tensor:
    """float32 of the shape of int32 labels: 0 where one is negative, else 1."""
    return tf.cast(tf.greater_equal(labels, 0), tf.float32)


def label_sums(
    logits: tf.Tensor, labels: tf.Tensor
) -> typing.Dict[str, tf.Tensor]:
    """Cross entropy and correct predictions, summed over all labels.

    Args:
      logits: float32 [..., L].
      labels: int32 [...]; a negative one does not count.

    Returns:
      {"loss", "accuracy": float32 scalar}.
    """
    # A product, which keeps shapes static.
    entropies = labelled(
        labels
    ) * tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.maximum(labels, 0), logits=logits
    )
    is_correct = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), labels)
    return {
        "loss": tf.reduce_sum(entropies),
        "accuracy": tf.reduce_sum(tf.cast(is_correct, tf.float32)),
    }


def label_set_sums(
    logits: tf.Tensor,
    labels: tf.Tensor,
    features: typing.Optional[_Features] = None,
) -> typing.Dict[str, tf.Tensor]:
    """Cross entropy of several labels a text, and texts that are all correct.

    Args:
      logits: float32 [B, L].
      labels: float32 [B, L], 0 or 1.
      features: of a batch, which may be packed.

    Returns:
      {"loss": sum over the batch of means over the labels, "exact_match":
      float32 scalar}.
    """
    entropies = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=labels, logits=logits
    )  # [B, L]
    is_correct = tf.equal(tf.greater(logits, 0.0), tf.greater(labels, 0.5))
    values = {
        "loss": tf.reduce_mean(entropies, axis=-1),
        "exact_match": tf.cast(tf.reduce_all(is_correct, axis=-1), tf.float32),
    }
    return {
        name: tf.reduce_sum(without_empty(features or {}, value))
        for name, value in values.items()
    }


class Head(typing.NamedTuple):
    """A task's layer on top of the encoder.

    Attributes:
      name: a key of weight_names.PARTS.
      outputs: function (features, hidden [B, S, H], dropout_seed int32 [2] or
        None) -> {name: [B, ...]}.
      sums: function (features of one micro-batch, outputs) -> {name: float32
        scalar}, sums over the micro-batch, "loss" among them.
      weight: function (features) -> float32 scalar that the sums are divided
        by: the number of sequences, or of labelled tokens.
      chance: the loss of a model that ignores its input; a run that is stuck
        there is reported.
    """

    name: str
    outputs: typing.Callable
    sums: typing.Callable
    weight: typing.Callable = count_sequences
    chance: typing.Optional[float] = None


class Model(typing.NamedTuple):
    """The encoder with a task's head, as a graph."""

    setup: Setup
    device: devices.Device
    head: Head

    def predictions(
        self,
        features: _Features,
        dropout_seed: typing.Optional[tf.Tensor] = None,
        recompute_layers: bool = False,
    ) -> typing.Dict[str, tf.Tensor]:
        """{name: [B, ...]}, with dropout if there is a seed (int32 [2])."""
        model = modeling.RobertaModel(
            self.setup.config,
            input_ids=_flat(features["input_ids"]),
            sequence_starts=features.get("sequence_starts"),
            kernels=self.device.kernels,
            is_training=dropout_seed is not None,
            dropout_seed=dropout_seed,
            recompute_layers=recompute_layers,
            frozen_layers=self.setup.task.freeze_layers,
        )
        return self.head.outputs(
            features, model.get_sequence_output(), dropout_seed
        )

    def losses(
        self,
        features: typing.Mapping[str, tf.Tensor],
        is_training: bool,
        dropout_seed: tf.Tensor,
    ) -> typing.Dict[str, tf.Tensor]:
        """{name: float32 scalar}, sums over a micro-batch."""
        run = self.setup.run
        drops = is_training and not run.npu_bert_debug
        outputs = self.predictions(
            features, dropout_seed if drops else None, run.recompute_layers
        )
        return self.head.sums(features, outputs)


def _flat(ids):
    """[B * choices, S] of [B, choices, S], static where that is known."""
    if ids.shape.ndims == 2:
        return ids
    rows, choices, length = ids.shape.as_list()
    return tf.reshape(
        ids,
        [
            -1 if rows is None else rows * choices,
            tf.shape(ids)[2] if length is None else length,
        ],
    )


# --- Runs -------------------------------------------------------------------


_OF_SQUAD = (
    "doc_stride",
    "max_query_length",
    "max_answer_length",
    "version_2_with_negative",
)


def _trained_task(model, labels):
    """What task.json says of a model."""
    run, task = model.setup.run, model.setup.task
    return model_directory.Task(
        model.head.name,
        run.max_seq_length,
        labels=list(labels) or None,
        **{name: getattr(task, name, None) for name in _OF_SQUAD},
    )


def fixed_settings(
    run: run_config.RunConfig, task: typing.Any
) -> typing.Dict[str, typing.Any]:
    """SQuAD's settings that a run may not change; of other tasks none."""
    names = (*_OF_SQUAD, "answerability_head")
    values = {n: getattr(task, n) for n in names if hasattr(task, n)}
    return values and dict(values, max_seq_length=run.max_seq_length)


def _description(train, run, task):
    """The training data, the task and the tokenizer, for run.json."""
    names = ("train_file", "vocab_file", "merges_file")
    paths = {name: getattr(task, name, "") for name in names}
    lengths = np.asarray(train.lengths, np.int64)
    return dict(
        {name: files.sha256(path) for name, path in paths.items() if path},
        **fixed_settings(run, task),
        do_lower_case=bool(task.do_lower_case),
        features=len(lengths),
        tokens_of_features=hashlib.sha256(lengths.tobytes()).hexdigest(),
    )


def _warn_of_start(run, variable, config_values):
    """Warns of random weights, and of a head that has other labels."""
    if not run.init_checkpoint:
        tf.logging.warning(
            "--init_checkpoint is not given: training starts from random "
            "weights; pass a pre-trained checkpoint"
        )
        return
    labels = config_values.get("id2label")
    saved = files.read_json(config_file(run)).get("id2label")
    if (
        labels
        and isinstance(saved, dict)
        and len(labels) == len(saved)
        and labels != saved
        and tf.train.load_checkpoint(run.init_checkpoint).has_tensor(variable)
    ):
        old, new = (", ".join(map(str, n.values())) for n in (saved, labels))
        tf.logging.warning(
            "%s: its head was trained with the labels %.200s, now used for "
            "%.200s, in this order",
            run.init_checkpoint,
            old,
            new,
        )


class FineTuning:
    """One fine-tuning run: trains a task's model and predicts with it.

    Checks memory and disk, and creates the output directory.
    """

    def __init__(
        self,
        model: Model,
        train: typing.Optional[Sequences],
        config_values: typing.Optional[typing.Mapping] = None,
        labels: typing.Sequence[str] = (),
    ):
        """
        Args:
          model: graph and flags.
          train: what to train on, None without training.
          config_values: {key: value} for config.json besides the model's own
            values, such as the labels.
          labels: for task.json.
        """
        self._train, self._plan = train, None
        run, _, task, config, _ = model.setup
        device = model.device
        size = (train.choices if train else None) or 1
        if train is not None and run.pack_sequences:
            self._plan = packed_batches.plan_of(train.lengths, run)
            size = self._plan.rows / self._plan.sequences
        preflight.check_run(
            run, config, device, model.head.name, predictions=0, choices=size
        )
        head = [
            variable.tf
            for variable in weight_names.variables({model.head.name}, config)
        ]
        if run.do_train and not checkpoints.newest(run.output_dir):
            _warn_of_start(run, head[0], config_values or {})
        trained_task = _trained_task(model, labels)
        output_directory.prepare(
            run,
            config,
            device.rank,
            task=trained_task,
            config_values=config_values,
            tokenizer=tokenizer_files(task),
        )
        if self._plan:  # from here on a batch is counted in rows
            run = self._plan.counted_in_rows(run)
        self._model = model._replace(setup=model.setup._replace(run=run))
        self.setup = self._model.setup
        steps, warmup = 1, 0
        if train is not None:
            count = self._plan.rows if self._plan else len(train.lengths)
            steps, warmup = schedule(count, self.setup, device)
        self._training = run_config.Training(
            config, run, device, steps, warmup, head=head, task=trained_task
        )
        if train is not None:
            self._training.describe(
                _description(train, run, task),
                len(train.lengths),
                task.num_train_epochs,
                self._plan,
            )
        self._estimator = device.estimator(
            self._model_fn, self.setup.source, steps
        )

    def _model_fn(self, features, labels, mode, params):
        model = self._model
        if mode == tf.estimator.ModeKeys.TRAIN:
            losses = train_step.Losses(
                model.losses, model.head.weight, model.head.chance
            )
            return train_step.train_spec(losses, features, self._training)
        outputs = dict(model.predictions(features), index=features["index"])
        warm_start.load_initial(self.setup.source)
        return tf.estimator.EstimatorSpec(mode, predictions=outputs)

    def score_with(
        self, sequences: Sequences, score: typing.Callable, metric: str
    ) -> None:
        """Scores the model while it trains, or the checkpoints of its run.

        Args:
          sequences: of the evaluation.
          score: function ({name: float32 [n, ...]}, the head's outputs by
            sequence) -> {name: number}.
          metric: the score that says which checkpoint is the best.
        """
        batches, steps = predict_batches(
            sequences, self.setup, self._model.device
        )
        task = evaluation.Task(
            batches,
            steps,
            len(sequences.lengths),
            self._model.predictions,
            score,
            metric,
        )
        evaluation.begin(self._training, task)

    def train(self) -> None:
        """Trains, resuming a run in output_dir; nothing without do_train."""
        if self._train is None:
            return
        if not self.setup.task.num_train_epochs:
            tf.logging.info("--num_train_epochs=0: no step is trained")
        else:
            batches = train_batches(
                self._train, self.setup, self._model.device, self._plan
            )
            loop.train(self._estimator, batches, self._training)

    def outputs(self, sequences: Sequences, size: int) -> np.ndarray:
        """Predictions named "outputs": float32 [n, size]."""
        outputs = np.zeros([len(sequences.lengths), size], np.float32)
        for index, values in self.predict(sequences):
            outputs[index] = values["outputs"]
        return outputs

    def predict(
        self, sequences: Sequences
    ) -> typing.Iterator[typing.Tuple[int, typing.Dict[str, np.ndarray]]]:
        """Predicts for all sequences once, the longest ones first.

        Each call builds the graph again: predict several files in one call.

        Yields:
          (index, {name: array [...]}), the head's outputs.
        """
        batches, steps = predict_batches(
            sequences, self.setup, self._model.device
        )

        def begin():
            outputs = self._estimator.predict(
                lambda params: input_pipeline.dataset(batches, 0, steps),
                checkpoint_path=warm_start.best(self.setup.run),
                yield_single_examples=False,
            )
            # The first batch restores the checkpoint.
            return itertools.chain(list(itertools.islice(outputs, 1)), outputs)

        with tensorflow_errors.reported(batches):
            outputs = checkpoints.restored(self.setup.source.output_dir, begin)
            for batch in logs.counted(outputs, steps, "predict", "batch"):
                indices = batch.pop("index")
                for row in np.flatnonzero(indices >= 0):
                    yield (
                        int(indices[row]),
                        {name: values[row] for name, values in batch.items()},
                    )
