# SPDX-License-Identifier: Apache-2.0
"""What the run scripts share: run settings, the training step, result files.
"""
import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import sys
import time
import typing

import tensorflow.compat.v1 as tf

import checkpoints
import command_line
import divergence
import errors
import interruption
import modeling
import optimization
import progress
import tfrecord
import warm_start
import weights


# What TensorFlow does not take for part of a name.
_PATTERN = re.compile("[*?\\[\\]\\\\\x00-\x1f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Of an update on one device: their places are counted in int32, four choices
# to a question.
_MAX_TOKENS = 2 ** 29


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Flags that the run scripts share."""
    bert_config_file: str = command_line.flag(
        "", "The model's config.json, as Hugging Face writes it.")
    output_dir: str = command_line.flag(
        "", "Directory of checkpoints and results; a run found there goes on.")
    out_log_dir: str = command_line.flag(
        "", "Directory of TensorBoard scalars. Default: output_dir.")
    init_checkpoint: str = command_line.flag(
        "", "Checkpoint prefix whose weights a new run starts from.")
    do_train: bool = command_line.flag(False, "Whether to train.")
    max_seq_length: int = command_line.flag(
        512, "Tokens of a sequence.", lower=4)
    train_batch_size: int = command_line.flag(
        32, "Sequences a device and micro-batch; the global batch is "
        "train_batch_size x num_accumulation_steps x devices.", lower=1)
    num_accumulation_steps: int = command_line.flag(
        1, "Micro-batches of one update.", lower=1)
    allreduce_post_accumulation: bool = command_line.flag(
        True, "Average gradients over devices once an update, not once a "
        "micro-batch.")
    optimizer_type: str = command_line.flag(
        "adam", "The optimizer.", choices=("adam", "lamb"))
    learning_rate: float = command_line.flag(
        1e-4, "Highest learning rate.", lower=0)
    adam_beta1: float = command_line.flag(
        0.9, "Decay of the first moment, below 1.", lower=0, upper=1)
    adam_beta2: float = command_line.flag(
        0.98, "Decay of the second moment, below 1.", lower=0, upper=1)
    adam_epsilon: float = command_line.flag(
        1e-6, "Added to the root of the second moment; above 0.", lower=0)
    weight_decay_rate: float = command_line.flag(
        0.01, "Decoupled weight decay; not of biases and LayerNorm.", lower=0)
    clip_norm: float = command_line.flag(
        1.0, "Largest norm of the gradients; 0 clips nothing.", lower=0)
    npu_bert_clip_by_global_norm: bool = command_line.flag(
        True, "Clip by the norm of all gradients; False clips each by its "
        "own.")
    layerwise_lr_decay: float = command_line.flag(
        1.0, "Factor on the learning rate from one layer to the one below.",
        lower=0.01, upper=1)
    recompute_layers: bool = command_line.flag(
        False, "Compute activations again in the backward pass: less memory, "
        "about a third more time.")
    save_checkpoints_steps: int = command_line.flag(
        1000, "Steps between checkpoints.", lower=1)
    keep_checkpoint_max: int = command_line.flag(
        5, "Checkpoints to keep.", lower=2)
    iterations_per_loop: int = command_line.flag(
        1000, "NPU: steps on the device between two looks of the host.",
        lower=1)
    display_loss_steps: int = command_line.flag(
        100, "Steps between log lines.", lower=1)
    report_loss: bool = command_line.flag(
        True, "Average the logged loss over all devices; False logs rank 0's "
        "own.")
    verbose_logging: bool = command_line.flag(
        False, "Log every variable and every setting.")
    divergence_guard: str = command_line.flag(
        "off", "What to do about a run that diverges: stop, or rollback, "
        "which restores a checkpoint from before it and passes over the "
        "batches that did it.", choices=divergence.MODES)
    divergence_max_rollbacks: int = command_line.flag(
        3, "Rollbacks of the whole run; one more ends it.", lower=0)
    divergence_deviations: float = command_line.flag(
        6.0, "Deviations above the running mean that a loss may reach.",
        lower=1)
    npu_bert_debug: bool = command_line.flag(
        False, "Train without dropout and in the order of the records.")
    random_seed: int = command_line.flag(
        12345, "Order of records, masks, dropout and new weights follow from "
        "it.", lower=0, upper=2 ** 31 - 1)

    def __post_init__(self):
        if not self.output_dir:
            raise errors.UserError("no output directory is given; name one "
                                   "with --output_dir")
        if _PATTERN.search(self.output_dir):
            raise errors.UserError(
                "--output_dir=%r: TensorFlow takes *, ?, [, ] and \\ in the "
                "name of a checkpoint for a pattern, and could not go on from "
                "it; give a name without them and without control characters"
                % self.output_dir)
        if _SURROGATE.search(self.out_log_dir):
            raise errors.UserError(
                "--out_log_dir=%r is not UTF-8, which TensorFlow writes names "
                "in; give another name" % self.out_log_dir)
        # A step would divide by zero.
        for name, wrong, wanted in (
                ("adam_beta1", self.adam_beta1 == 1, "below 1"),
                ("adam_beta2", self.adam_beta2 == 1, "below 1"),
                ("adam_epsilon", self.adam_epsilon == 0, "above 0")):
            if wrong:
                raise errors.UserError(
                    "--%s is %g; expected a number %s, such as RoBERTa's %g" %
                    (name, getattr(self, name), wanted,
                     type(self).__dataclass_fields__[name].default))
        tokens = self.batch_size * self.max_seq_length
        if tokens > _MAX_TOKENS:
            raise errors.UserError(
                "--train_batch_size=%d, --num_accumulation_steps=%d and "
                "--max_seq_length=%d make %d tokens an update; expected at "
                "most %d on a device, so use smaller ones" % (
                    self.train_batch_size, self.num_accumulation_steps,
                    self.max_seq_length, tokens, _MAX_TOKENS))

    @property
    def batch_size(self):
        """Sequences of one update on one device."""
        return self.train_batch_size * self.num_accumulation_steps

    @property
    def log_dir(self):
        return self.out_log_dir or self.output_dir


def set_up_logging(run):
    """Our lines and TensorFlow's warnings, each once, with a time."""
    level = logging.DEBUG if run.verbose_logging else logging.INFO
    _set_up_logger(level, filters=not run.verbose_logging)


def set_up_warnings():
    """Warnings alone, for scripts whose output is an answer."""
    _set_up_logger(logging.WARNING, filters=True)


def _set_up_logger(level, filters):
    logger = tf.get_logger()
    logger.setLevel(level)
    logger.propagate = False  # absl's handler would say it again
    for handler in logger.handlers:
        handler.setFormatter(_Formatter())
        if filters:
            handler.addFilter(_is_of_use)


# What TensorFlow says of itself at every start.
_CHATTER = re.compile(
    r".*eprecat|Estimator's model_fn|Using config|_TPUContext|"
    r"eval_on_tpu ignored|Done calling|"
    r"Running local_init_op|Done running|Graph was finalized|Create Check|"
    r"Skipping training since|.*_loop marked as finished|Inference Time|"
    r"Loss for final step|Saving 'checkpoint_path'|Saving dict|"
    r"Calling checkpoint listeners|Calling model_fn|Running (train|eval|"
    r"infer) on CPU|Error recorded from|Reraising captured error")


def _is_of_use(record):
    return not _CHATTER.match(record.getMessage())


class _Formatter(logging.Formatter):
    """`2026-01-31 12:00:00 I message`."""

    def format(self, record):
        return "%s %s %s" % (time.strftime("%Y-%m-%d %H:%M:%S"),
                             record.levelname[0], record.getMessage())


def model_config(run):
    """The config that --bert_config_file names."""
    config = modeling.RobertaConfig.from_json_file(run.bert_config_file)
    if config.unknown_keys:
        tf.logging.warning("%s: %s are not known here and change nothing",
                           run.bert_config_file,
                           ", ".join(config.unknown_keys))
    return config


def latest_checkpoint(output_dir):
    """Prefix of the newest checkpoint, or None."""
    return checkpoints.newest(output_dir)


def new_guard(run):
    """The divergence.Guard that the flags ask for."""
    return divergence.Guard(run.divergence_guard,
                            run.divergence_max_rollbacks,
                            run.divergence_deviations)


class Losses(typing.NamedTuple):
    """A task's loss, as `train_spec` wants it.

    Attributes:
      compute: function (features of one micro-batch, is_training,
        dropout_seed) -> {name: float32 scalar}; sums over the micro-batch,
        "loss" among them.
      weight: function (features of any number of sequences) -> float32
        scalar, what the sum of losses is divided by.
      chance: the loss of a model that looks at no text, where a run that is
        stuck there should be noticed.
    """
    compute: typing.Callable
    weight: typing.Callable
    chance: typing.Optional[float] = None


def train_spec(losses, features, *, config, run, device, num_train_steps,
               num_warmup_steps, init_checkpoint, save_timer, guard=None,
               head=()):
    """The EstimatorSpec of training.

    Loss and gradients are divided by the weight of the whole global batch,
    over micro-batches and devices alike, as fairseq does.

    Args:
      losses: Losses.
      features: {name: [K * B, ...]}, the sequences of one update.
      config: modeling.RobertaConfig.
      run: RunConfig.
      device: an environment's device.
      num_train_steps, num_warmup_steps: updates.
      init_checkpoint: checkpoint prefix of a new run, or "".
      save_timer: progress.SaveTimer that listens to the estimator's saves.
      guard: divergence.Guard, or None.
      head: names of variables; see `warm_start.load`.
    """
    guard = guard or new_guard(run)
    tf.add_to_collection(tf.GraphKeys.SAVERS,
                         checkpoints.Saver(run.keep_checkpoint_max))
    global_step = tf.train.get_or_create_global_step()
    seen = tf.get_variable("batches_seen", [], tf.int64, trainable=False,
                           initializer=tf.zeros_initializer())
    weight, = device.average([losses.weight(features)])
    weight = tf.maximum(weight, 1.0)
    rate = optimization.linear_schedule(
        global_step, run.learning_rate, num_train_steps, num_warmup_steps)

    def micro_batch(index):
        rows = {name: _micro_batch(tensor, index, run.num_accumulation_steps)
                for name, tensor in features.items()}
        seed = _dropout_seed(run, device.rank, seen, index)
        sums = losses.compute(rows, True, seed)
        return sums["loss"] / weight, {name: value / weight
                                       for name, value in sums.items()}

    optimizer = _optimizer(config, run, rate)
    micro = device.micro_batches(optimizer, micro_batch, run)
    chain = device.wrap_optimizer(micro, run)
    pairs = chain.compute_gradients(tf.constant(1.0))
    if init_checkpoint:
        warm_start.load(init_checkpoint, head)
    sums = micro.sums
    if run.report_loss or guard.mode != "off":
        names = sorted(sums)
        sums = dict(zip(names, device.average([sums[n] for n in names])))
    norm = optimization.global_norm([g for g, _ in pairs])
    clipped = optimization.clip(pairs, run.clip_norm,
                                run.npu_bert_clip_by_global_norm, norm)
    # The norm is there once every gradient is: no weight changes under an
    # operation that still reads it.
    with tf.control_dependencies([norm]):
        update = chain.apply_gradients(clipped, global_step)
    with tf.control_dependencies([update] + [sums[n] for n in sorted(sums)]):
        train_op = tf.assign_add(seen, 1).op
    # All processes must see the same numbers to come to the same conclusion.
    seen_norm, = device.average([norm]) if guard.mode != "off" else [norm]
    report = dict(sums, learning_rate=rate, gradient_norm=seen_norm,
                  tokens=_tokens(features, config) * device.world_size)
    with tf.control_dependencies([train_op]):
        report.update({name: tf.identity(value) for name, value in dict(
            device.overflow(chain), global_step=global_step,
            batches_seen=seen).items()})
    hook = progress.ProgressHook(
        report, (seen, global_step), every=run.display_loss_steps,
        is_logging=device.rank == 0,
        log_dir=run.log_dir, num_train_steps=num_train_steps,
        examples_per_step=run.batch_size * device.world_size,
        gradient_names=[optimization.variable_name(v) for g, v in pairs
                        if g is not None],
        save_timer=save_timer, weight_norm=_weight_norm(device), guard=guard,
        chance=losses.chance)
    return tf.estimator.EstimatorSpec(
        tf.estimator.ModeKeys.TRAIN, loss=device.without_nan(sums["loss"]),
        train_op=train_op, training_hooks=device.hooks() + [hook])


def _weight_norm(device):
    if not device.runs_between_steps:
        return None
    return optimization.global_norm(tf.trainable_variables())


def _tokens(features, config):
    """How many tokens a step's sequences have, padding left out.

    One device's own: like lengths come together, and no message is sent for
    a number that is only shown.
    """
    return tf.reduce_sum(tf.cast(
        tf.not_equal(features["input_ids"], config.pad_token_id), tf.float32))


def _micro_batch(tensor, index, count):
    """Part `index` of `count` equal ones along the first axis."""
    if count == 1:
        return tensor
    shape = tf.concat([[count, -1], tf.shape(tensor)[1:]], axis=0)
    part = tf.reshape(tensor, shape)[index]
    static = tensor.shape.as_list()
    part.set_shape([static[0] and static[0] // count] + static[1:])
    return part


def _dropout_seed(run, rank, seen, index):
    """int32 [2]: differs by seed, rank, batch and micro-batch."""
    key = (run.random_seed * 0x9E3779B1 + rank * 0x85EBCA6B) & 0x7FFFFFFF
    counter = (tf.cast(seen, tf.int64) * run.num_accumulation_steps
               + tf.cast(index, tf.int64))
    return tf.stack([tf.constant(key, tf.int32),
                     tf.cast(tf.floormod(counter, 2 ** 31 - 1), tf.int32)])


def _optimizer(config, run, rate):
    return optimization.OPTIMIZERS[run.optimizer_type](
        rate, beta1=run.adam_beta1, beta2=run.adam_beta2,
        epsilon=run.adam_epsilon, weight_decay_rate=run.weight_decay_rate,
        rate_factor=functools.partial(
            optimization.layer_wise_factor, decay=run.layerwise_lr_decay,
            num_layers=config.num_hidden_layers))


def train(estimator, batches, input_fn, *, run, device, num_train_steps,
          save_timer, guard=None):
    """Trains up to num_train_steps, going on where output_dir left off.

    SIGTERM and SIGINT save a checkpoint and end the process with 143 and 130.

    Args:
      estimator: from device.estimator.
      batches: input_pipeline.Batches that input_fn reads.
      input_fn: function of the first batch's number giving a dataset.
      run: RunConfig.
      device: the device.
      num_train_steps: updates in all.
      save_timer: the progress.SaveTimer given to `train_spec`.
      guard: the divergence.Guard given to `train_spec`.

    Raises:
      errors.UserError: a batch cannot be made, or training is stuck.
    """
    guard = guard or new_guard(run)
    _check_guard(run, device)
    tf.logging.info(
        "global_batch=%d train_batch_size=%d num_accumulation_steps=%d "
        "devices=%d learning_rate=%g num_train_steps=%d",
        run.batch_size * device.world_size, run.train_batch_size,
        run.num_accumulation_steps, device.world_size, run.learning_rate,
        num_train_steps)
    signals = interruption.Interruption()
    stop = interruption.StopHook(signals, device)
    with reported(batches, run.output_dir), signals.watched(
            device.stops_together):
        while not _train_once(estimator, input_fn, run, device, guard, stop,
                              num_train_steps, save_timer):
            pass
    if stop.has_stopped:
        device.agree(0)  # rank 0 has saved
    if stop.has_stopped or signals.number:
        device.close()
        tf.logging.warning(
            "ended by a signal; %s is there, and the same command goes on "
            "from it", latest_checkpoint(run.output_dir))
        sys.exit(signals.exit_code)


def _check_guard(run, device):
    if run.divergence_guard == "rollback" and not device.stops_together:
        raise errors.UserError(
            "--divergence_guard=rollback on %d NPUs: they cannot restore a "
            "checkpoint together in one process; use --divergence_guard=stop "
            "and start again" % device.world_size)
    if not device.stops_together:
        tf.logging.info("a signal ends this process at once; the run then "
                        "goes on from its last periodic checkpoint")


def _train_once(estimator, input_fn, run, device, guard, stop,
                num_train_steps, save_timer):
    """Trains from the newest checkpoint; False after a rollback."""
    latest = latest_checkpoint(run.output_dir)
    skips = divergence.Skips(run.output_dir)
    first, skipped = skips.resume(checkpoints.batches_seen(latest))
    first = device.agree(first)
    guard.skipped = device.agree(skipped)
    if latest:
        tf.logging.info("going on from %s, batch %d", latest, first)
        step = checkpoints.global_step(latest)
        if step >= num_train_steps:
            tf.logging.info("step=%d of num_train_steps=%d: nothing is left "
                            "to train", step, num_train_steps)
    try:
        estimator.train(lambda params: input_fn(first),
                        max_steps=num_train_steps,
                        hooks=[stop, progress.StartHook(first)],
                        saving_listeners=[save_timer]
                        if device.rank == 0 else [])
    except divergence.Diverged as diverged:
        _roll_back(run, device, guard, diverged.trouble)
        return False
    return True


def _roll_back(run, device, guard, trouble):
    """Makes a checkpoint from before the trouble the newest one.

    Raises:
      errors.UserError: that is not possible.
    """
    problem = None
    if device.rank == 0:
        try:
            _restore_before(run, trouble)
        except (errors.UserError, OSError) as error:
            problem = error
    if device.agree(int(problem is not None)):
        raise problem or errors.UserError(str(trouble))
    guard.detector.forget()


def _restore_before(run, trouble):
    skips = divergence.Skips(run.output_dir)
    if skips.rollbacks >= run.divergence_max_rollbacks:
        raise errors.UserError(
            "the run diverged: %s; rollbacks so far: %d, and "
            "--divergence_max_rollbacks is %d; use a lower --learning_rate "
            "or a longer warm-up" % (trouble, skips.rollbacks,
                                     run.divergence_max_rollbacks))
    written = [(path, checkpoints.batches_seen(path))
               for path in checkpoints.listed(run.output_dir)
               if not checkpoints.damage(path)]
    place = divergence.rollback_target(written, trouble, skips)
    path, seen = written[place]
    skips.add(seen, trouble.end)
    checkpoints.keep(run.output_dir, [p for p, _ in written[:place + 1]])
    tf.logging.warning(
        "rollback %d of at most %d to %s: %s; going on at batch %d",
        skips.rollbacks, run.divergence_max_rollbacks, path, trouble,
        trouble.end)


@contextlib.contextmanager
def reported(batches, output_dir=""):
    """Turns TensorFlow's errors into those that a user can mend."""
    try:
        yield
    except tf.errors.OpError as error:
        batches.raise_error()
        message = _reason(error, output_dir)
        if message:
            raise errors.UserError(message)
        raise


# Words of TensorFlow's messages about files.
_DISK_FULL = re.compile(r"No space left|Disk quota|File too large")
_NOT_WRITABLE = re.compile(r"Permission denied|Read-only file system|"
                           r"No such file or directory")


def _reason(error, output_dir):
    """What a user can mend of an error of TensorFlow's, or ""."""
    text = str(error)
    found = _DISK_FULL.search(text) or _NOT_WRITABLE.search(text)
    line = next((line.strip() for line in text.splitlines()
                 if not found or found.group() in line), "")
    if found:
        latest = output_dir and latest_checkpoint(output_dir)
        return ("TensorFlow cannot use its files in %s: %s (%s); %s, then "
                "the same command goes on from %s" % (
                    output_dir or "the output directory", found.group(), line,
                    "free some space" if _DISK_FULL.search(text)
                    else "make it usable", latest or "the start"))
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return ("out of memory: %s; use a smaller --train_batch_size and a "
                "larger --num_accumulation_steps" % line)
    return warm_start.reason(text, output_dir)


def report_results(run, results):
    """Logs an evaluation, writes eval_results.txt, and scalars under `eval/`.

    Args:
      run: RunConfig.
      results: {name: number}. Whole numbers are counts, and no scalars;
        global_step is the step of the scalars, else that of the checkpoint
        evaluated.
    """
    tf.logging.info("%s", " ".join("%s=%.6g" % item
                                   for item in sorted(results.items())))
    write_results(os.path.join(run.output_dir, "eval_results.txt"), results)
    step = results.get("global_step")
    if step is None:
        step = checkpoints.global_step(latest_checkpoint(run.output_dir)
                                       or run.init_checkpoint)
    writer = progress.scalar_writer(run.log_dir, "eval")
    progress.add_scalars(writer, {
        "eval/" + name: value for name, value in results.items()
        if isinstance(value, float)}, step)
    writer.close()


def write_results(path, results):
    """Writes `key = value` lines; the file appears when it is complete."""
    write_text(path, "".join("%s = %s\n" % (key, results[key])
                             for key in sorted(results)))


def write_json(path, value):
    """Writes indented JSON; the file appears when it is complete."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path, text):
    """Writes UTF-8 text; the file appears when it is complete."""
    tfrecord.write_atomically(path, text.encode("utf-8"))


class TokenizerFiles(typing.NamedTuple):
    """What turned text into the ids that a model is trained on."""
    vocab_file: str
    merges_file: str
    do_lower_case: bool = False


def prepare_output(run, config, rank=0, config_values=None, tokenizer=None):
    """Makes the output directories; rank 0 writes config.json there.

    A damaged checkpoint found there is passed over.

    No other process trains there then (`checkpoints.claim`).

    Args:
      run: RunConfig.
      config: modeling.RobertaConfig.
      rank: of this process.
      config_values: {key: value} that config.json holds besides.
      tokenizer: TokenizerFiles, which go along with the model, or None.
    """
    os.makedirs(run.output_dir, exist_ok=True)
    os.makedirs(run.log_dir, exist_ok=True)
    if run.do_train and rank == 0:
        checkpoints.claim(run.output_dir)
    checkpoints.repair(run.output_dir, removes=run.do_train and rank == 0)
    path = os.path.join(run.output_dir, "config.json")
    is_there = os.path.exists(path) and os.path.samefile(
        path, run.bert_config_file)
    if rank:
        return
    if not is_there:
        write_json(path, dict(config.to_dict(), **(config_values or {})))
    elif config_values:
        write_json(path, dict(read_config(path), **config_values))
    if tokenizer is not None:
        _write_tokenizer(run.output_dir, tokenizer)


def read_config(path):
    """All keys of a config.json that `model_config` accepts, {} without one.
    """
    if not os.path.exists(path):
        return {}
    return weights.read_json(path)


def _write_tokenizer(directory, tokenizer):
    """vocab.json, merges.txt and, where text is lower-cased, that it is."""
    for name, source in (("vocab.json", tokenizer.vocab_file),
                         ("merges.txt", tokenizer.merges_file)):
        content = weights.read_small(source)
        path = os.path.join(directory, name)
        if not (os.path.isfile(path)
                and weights.read_small(path) == content):
            tfrecord.write_atomically(path, content)
    path = os.path.join(directory, "tokenizer_config.json")
    values = weights.read_json(path) if os.path.isfile(path) else {}
    if bool(values.get("do_lower_case")) != tokenizer.do_lower_case:
        write_json(path, dict(values, do_lower_case=tokenizer.do_lower_case))
