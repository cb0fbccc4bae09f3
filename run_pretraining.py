# SPDX-License-Identifier: Apache-2.0
r"""Pre-trains RoBERTa as a masked language model, and evaluates it.

    python run_pretraining.py --bert_config_file=config.json \
      --input_files_dir=records --output_dir=output --do_train=True
"""

import common.startup

import dataclasses
import math
import os
import typing

import tensorflow.compat.v1 as tf
from absl import flags

import configuration
import environment
import modeling
from common import command_line, errors
from pretraining_data import manifest as manifests
from pretraining_data import records
from training import (
    checkpoints,
    eval_results,
    evaluation,
    input_pipeline,
    logs,
    loop,
    masked_lm_batches,
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


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """Flags of this command only."""

    input_files_dir: str = command_line.flag(
        "",
        "Records to train on: directories, files and globs, comma separated.",
        group=command_line.FIRST,
    )
    eval_files_dir: str = command_line.flag(
        "", "Records to evaluate on, as for --input_files_dir."
    )
    do_eval: bool = command_line.flag(False, "Whether to evaluate.")
    max_predictions_per_seq: int = command_line.flag(
        80,
        "Largest number of masked positions per sequence.",
        lower=1,
        group=command_line.DATA,
    )
    masked_lm_prob: typing.Optional[float] = command_line.flag(
        None,
        "Share of tokens that dynamic masking draws in training. Default: "
        "manifest.json's, else 0.15. Evaluation draws 0.15 unless it is given "
        "without --do_train.",
    )
    do_whole_word_mask: typing.Optional[bool] = command_line.flag(
        None,
        "Whether dynamic masking draws whole words. Default: "
        "manifest.json's, else False.",
    )
    shuffle_window: int = command_line.flag(
        100000, "Records that are shuffled together.", lower=1
    )
    skip_corrupt_records: bool = command_line.flag(
        False, "Skip corrupted records and count them."
    )
    eval_batch_size: int = command_line.flag(
        8,
        "Sequences per batch in evaluation.",
        lower=1,
        group=command_line.TRAINING,
    )
    max_eval_steps: int = command_line.flag(
        0, "Batches of an evaluation; 0 evaluates all records.", lower=0
    )
    num_train_steps: int = command_line.flag(
        100000, "Updates of the entire run.", lower=1
    )
    num_train_epochs: float = command_line.flag(
        0.0,
        "Passes over the records, in place of --num_train_steps; 0 trains for "
        "--num_train_steps.",
        lower=0,
    )
    num_warmup_steps: int = command_line.flag(
        10000, "Updates over which the learning rate rises from 0.", lower=0
    )

    def __post_init__(self):
        if self.masked_lm_prob is not None and not (
            0 < self.masked_lm_prob < 1
        ):
            raise errors.UserError(
                f"--masked_lm_prob is {self.masked_lm_prob}; expected a number "
                "between 0 and 1, 0.15 in the paper"
            )


def masked_lm_sums(
    config: configuration.RobertaConfig,
    features: typing.Dict[str, tf.Tensor],
    kernels: modeling.Kernels,
    *,
    is_training: bool,
    dropout_seed: typing.Optional[tf.Tensor] = None,
    recompute_layers: bool = False,
) -> typing.Tuple[typing.Dict, typing.Dict, tf.Tensor]:
    """Loss and accuracy, summed over the masked positions of a batch.

    Args:
      config: of the model.
      features: of masked_lm_batches.MaskedLmBatches.
      kernels: of the device.
      is_training: whether dropout is applied.
      dropout_seed, recompute_layers: see modeling.RobertaModel.

    Returns:
      ({"loss", "masked_lm_accuracy": float32 scalar},
       {"loss", "masked_lm_accuracy": float32 [B * P]}, weights [B * P]).
    """
    model = modeling.RobertaModel(
        config,
        is_training,
        features["input_ids"],
        features.get("input_mask"),
        sequence_starts=features.get("sequence_starts"),
        kernels=kernels,
        dropout_seed=dropout_seed,
        recompute_layers=recompute_layers,
        output_positions=features["masked_lm_positions"],
    )
    logits = modeling.masked_lm_logits(
        config, model.get_rows(), model.get_embedding_table(), kernels
    )
    labels = tf.reshape(features["masked_lm_ids"], [-1])
    weights = tf.reshape(features["masked_lm_weights"], [-1])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=logits
    )
    # Cheaper than tf.argmax over the vocabulary.
    of_label = tf.gather_nd(
        logits, tf.stack([tf.range(tf.shape(labels)[0]), labels], axis=1)
    )
    correct = tf.cast(of_label >= tf.reduce_max(logits, axis=1), tf.float32)
    values = {"loss": loss, "masked_lm_accuracy": correct}
    sums = {n: tf.reduce_sum(value * weights) for n, value in values.items()}
    return sums, values, weights


def build_model_fn(
    training: run_config.Training, source: run_config.RunConfig
) -> typing.Callable:
    """The estimator's model function; `source` as in `evaluate`."""
    config, run = training.config, training.run
    kernels = training.device.kernels

    def compute(features, is_training, dropout_seed):
        sums, _, _ = masked_lm_sums(
            config,
            features,
            kernels,
            is_training=is_training and not run.npu_bert_debug,
            dropout_seed=dropout_seed,
            recompute_layers=run.recompute_layers,
        )
        return sums

    losses = train_step.Losses(
        compute,
        lambda features: tf.reduce_sum(features["masked_lm_weights"]),
        predicts_tokens=True,
    )

    def model_fn(features, labels, mode, params):
        if mode == tf.estimator.ModeKeys.TRAIN:
            return train_step.train_spec(losses, features, training)
        _, values, weights = masked_lm_sums(
            config, features, kernels, is_training=False
        )
        warm_start.load_initial(source)
        loss = values["loss"]
        return tf.estimator.EstimatorSpec(
            mode,
            loss=tf.div_no_nan(
                tf.reduce_sum(loss * weights), tf.reduce_sum(weights)
            ),
            eval_metric_ops={
                "masked_lm_loss": tf.metrics.mean(loss, weights),
                "masked_lm_accuracy": tf.metrics.mean(
                    values["masked_lm_accuracy"], weights
                ),
            },
        )

    return model_fn


def read_records(
    inputs: str,
    config: configuration.RobertaConfig,
    run: run_config.RunConfig,
    task: PretrainingConfig,
    is_training: bool = True,
) -> masked_lm_batches.MaskedLmSource:
    """Opens records; raises errors.UserError where flags do not match them.

    Evaluation masks 15 % whatever training does, so that losses can be
    compared (Wettig et al. 2022, arXiv:2202.08005); without training,
    --masked_lm_prob changes that.
    """
    probability = task.masked_lm_prob
    if not is_training and (run.do_train or probability is None):
        probability = 0.15
    return masked_lm_batches.MaskedLmSource(
        inputs,
        masked_lm_batches.Settings(
            max_seq_length=run.max_seq_length,
            max_predictions=task.max_predictions_per_seq,
            masked_lm_prob=probability,
            whole_words=task.do_whole_word_mask,
            vocab_size=config.vocab_size,
            pad_token_id=config.pad_token_id,
            skip_corrupt=task.skip_corrupt_records,
            directories=[os.path.dirname(run.bert_config_file)],
        ),
    )


def _plan(source, run, device):
    """(packed_batches.Plan, int [n] lengths) of the training records.

    Raises:
      errors.UserError: there is nothing to pack, or records are static.
    """
    if not source.dynamic:
        raise errors.UserError(
            "--pack_sequences: static records have their masks and padding; "
            "build them with --masking=dynamic, or omit the flag"
        )
    tf.logging.info("reading the lengths of %d records", len(source))
    lengths = device.once_per_host(source.token_counts)
    plan = packed_batches.plan_of(lengths, run)
    if plan.rows > 0.95 * plan.sequences:
        raise errors.UserError(
            f"--pack_sequences: the records fill their sequences, {plan.rows} "
            f"rows hold {plan.sequences} records; omit the flag"
        )
    return plan, lengths


def _training_batches(source, run, task, device, packed=None):
    if packed:
        plan, lengths = packed
        return masked_lm_batches.PackedMaskedLmBatches(
            source,
            plan,
            lengths,
            rows=run.batch_size,
            rank=device.rank,
            world_size=device.world_size,
            seed=run.random_seed,
        )
    if run.npu_bert_debug:
        order = input_pipeline.FrontToBack(len(source))
    else:
        order = records.RecordOrder(
            source.shard_counts, run.random_seed, task.shuffle_window
        )
    return masked_lm_batches.MaskedLmBatches(
        source,
        batch_size=run.batch_size,
        rank=device.rank,
        world_size=device.world_size,
        seed=run.random_seed,
        order=order,
    )


def evaluate(
    estimator: tf.estimator.Estimator,
    records_source: masked_lm_batches.MaskedLmSource,
    run: run_config.RunConfig,
    task: PretrainingConfig,
    source: run_config.RunConfig,
) -> None:
    """Evaluates, logs and writes eval_results.txt.

    Args:
      estimator: of the model.
      records_source: what to evaluate on.
      run: flags.
      task: flags.
      source: whose checkpoint is restored, see `warm_start.source`.
    """
    batches, steps = _evaluation_batches(records_source, run, task)
    tf.logging.info(
        "evaluating %d of %d sequences",
        min(steps * task.eval_batch_size, len(records_source)),
        len(records_source),
    )
    with tensorflow_errors.reported(batches):
        measured = checkpoints.restored(
            source.output_dir,
            lambda: estimator.evaluate(
                lambda params: input_pipeline.dataset(batches, 0, steps),
                steps=steps,
                checkpoint_path=warm_start.best(run),
            ),
        )
    results = _results(
        float(measured["masked_lm_loss"]), float(measured["masked_lm_accuracy"])
    )
    eval_results.report_results(run, results, warm_start.global_step(source))


def score_with(
    training: run_config.Training,
    records_source: masked_lm_batches.MaskedLmSource,
    task: PretrainingConfig,
) -> None:
    """Scores while training, under masks that stay the same."""
    batches, steps = _evaluation_batches(records_source, training.run, task)

    def outputs(features):
        sums, _, weights = masked_lm_sums(
            training.config,
            features,
            training.device.kernels,
            is_training=False,
        )
        sums["weight"] = tf.reduce_sum(weights)
        return {name: tf.reshape(value, [1]) for name, value in sums.items()}

    def score(values):
        sums = {n: float(v.sum(dtype=float)) for n, v in values.items()}
        weight = max(sums["weight"], 1.0)
        return _results(
            sums["loss"] / weight, sums["masked_lm_accuracy"] / weight
        )

    evaluation.begin(
        training,
        evaluation.Task(
            batches, steps, steps, outputs, score, "masked_lm_loss"
        ),
    )


def _evaluation_batches(records_source, run, task):
    """(batches, how many of them are evaluated)."""
    batches = masked_lm_batches.MaskedLmBatches(
        records_source, batch_size=task.eval_batch_size, seed=run.random_seed
    )
    steps = batches.steps
    if task.max_eval_steps:
        steps = min(steps, task.max_eval_steps)
    return batches, steps


def _results(loss, accuracy):
    return {
        "masked_lm_loss": loss,
        "masked_lm_accuracy": accuracy,
        "perplexity": math.exp(min(loss, 700.0)),
    }


def _check(run, task, config):
    if not (run.do_train or task.do_eval or run.scores_checkpoints):
        raise errors.UserError(
            "nothing to do; pass --do_train=True or --do_eval=True"
        )
    if run.pack_sequences and not run.do_train:
        raise errors.UserError(
            "--pack_sequences: evaluation in pre-training is not packed; omit "
            "the flag"
        )
    if (run.evaluates or task.do_eval) and not task.eval_files_dir:
        raise errors.UserError(
            "--eval_files_dir is missing; --do_eval, --evaluate_every_steps "
            "and --evaluate_checkpoints need records to evaluate on"
        )
    model_directory.check_length(
        run.max_seq_length, config, run.bert_config_file
    )
    if run.do_train and not task.num_train_epochs:
        _check_warmup(task)


def _check_warmup(task):
    if task.num_warmup_steps < task.num_train_steps:
        return
    steps = f"--num_train_steps={task.num_train_steps}"
    if task.num_train_epochs:
        epochs = f"--num_train_epochs={task.num_train_epochs:g}"
        steps = f"the {task.num_train_steps} steps of {epochs}"
    raise errors.UserError(
        f"--num_warmup_steps is {task.num_warmup_steps}, expected less than "
        f"{steps}; shorten the warm-up"
    )


def with_steps(
    task: PretrainingConfig,
    run: run_config.RunConfig,
    device: environment.Device,
    sequences: int,
) -> PretrainingConfig:
    """The flags with the steps of --num_train_epochs.

    Raises:
      errors.UserError: the warm-up takes as many steps, or more.
    """
    if not task.num_train_epochs:
        return task
    steps = run_record.updates(run, device, sequences * task.num_train_epochs)
    task = dataclasses.replace(task, num_train_steps=steps)
    _check_warmup(task)
    return task


def _tokenizer_of(inputs, run):
    """The tokenizer of records; None, with a warning, where it is unknown."""
    tokenizer = manifests.find_tokenizer(
        records.expand_inputs(inputs), [os.path.dirname(run.bert_config_file)]
    )
    if tokenizer is None:
        tf.logging.warning(
            "%s: the tokenizer of these records is not beside them, nor beside "
            "--bert_config_file: it is neither compared nor copied to "
            "--output_dir; copy vocab.json and merges.txt there",
            inputs,
        )
        return None
    tf.logging.info(
        "%s: do_lower_case=%s, tokenizer in %s",
        inputs,
        tokenizer.do_lower_case,
        os.path.dirname(tokenizer.vocab_file) or os.curdir,
    )
    return tokenizer


def _choose_tokenizer(run, task):
    """The tokenizer of the records, compared with all others of the run.

    Raises:
      errors.UserError: records or a model have another one.
    """
    inputs = [task.input_files_dir] * run.do_train
    inputs += [task.eval_files_dir] * (task.do_eval or run.evaluates)
    tokenizers = [_tokenizer_of(text, run) for text in dict.fromkeys(inputs)]
    known = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    for tokenizer in known:
        output_directory.check_tokenizer(run, tokenizer)
        model_directory.check_tokenizer(
            tokenizer,
            os.path.dirname(known[0].vocab_file),
            run.allow_other_tokenizer,
        )
    return tokenizers[0]


def define_flags() -> None:
    """Declares the flags of this command."""
    run_config.define_flags(PretrainingConfig)


def main(_) -> None:
    """Trains, then evaluates."""
    run, task, options = run_config.from_flags(PretrainingConfig, flags.FLAGS)
    logs.set_up_logging(run)
    run = warm_start.resolved(run)
    config = run_config.model_config(run)
    _check(run, task, config)
    source = warm_start.source(run, "cls/predictions/")
    device = environment.create(options)
    train_source = eval_source = packed = None
    asked, size = run, 1.0
    if run.do_train:
        train_source = read_records(
            task.input_files_dir, config, run, task, True
        )
        rows = len(train_source)
        if run.pack_sequences:  # from here on a batch is counted in rows
            packed = _plan(train_source, run, device)
            rows = packed[0].rows
            size = rows / len(train_source)
            run = packed[0].counted_in_rows(run)
        task = with_steps(task, run, device, rows)
    if task.do_eval or run.evaluates:
        eval_source = read_records(
            task.eval_files_dir, config, run, task, False
        )
    # All is checked before anything is written.
    warm_start.check(source, config, ["masked_lm"], "cls/predictions/")
    preflight.check_run(
        asked,
        config,
        device,
        "masked_lm",
        predictions=task.max_predictions_per_seq,
        choices=size,
    )
    trained_task = model_directory.Task("masked_lm", run.max_seq_length)
    output_directory.prepare(
        run,
        config,
        device.rank,
        task=trained_task,
        tokenizer=_choose_tokenizer(source, task),
    )
    training = run_config.Training(
        config,
        run,
        device,
        task.num_train_steps,
        task.num_warmup_steps,
        task=trained_task,
    )
    if train_source:
        training.describe(
            dict(train_source.description, shuffle_window=task.shuffle_window),
            len(train_source),
            task.num_train_epochs,
            packed and packed[0],
        )
    if run.evaluates:
        score_with(training, eval_source, task)
    estimator = device.estimator(
        build_model_fn(training, source), source, task.num_train_steps
    )
    if run.do_train:
        batches = _training_batches(train_source, run, task, device, packed)
        loop.train(estimator, batches, training)
    if task.do_eval and device.rank == 0:
        evaluate(estimator, eval_source, run, task, source)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
