# SPDX-License-Identifier: Apache-2.0
"""The training step: losses, gradients, loss scale and update."""

import functools
import typing

import tensorflow.compat.v1 as tf

import optimization
from training import checkpoints, divergence, progress, warm_start


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


def train_spec(
    losses,
    features,
    *,
    config,
    run,
    device,
    num_train_steps,
    num_warmup_steps,
    init_checkpoint,
    save_timer,
    guard=None,
    head=(),
):
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
    guard = guard or divergence.new_guard(run)
    tf.add_to_collection(
        tf.GraphKeys.SAVERS, checkpoints.Saver(run.keep_checkpoint_max)
    )
    global_step = tf.train.get_or_create_global_step()
    seen = tf.get_variable(
        "batches_seen",
        [],
        tf.int64,
        trainable=False,
        initializer=tf.zeros_initializer(),
    )
    (weight,) = device.average([losses.weight(features)])
    weight = tf.maximum(weight, 1.0)
    rate = optimization.linear_schedule(
        global_step, run.learning_rate, num_train_steps, num_warmup_steps
    )

    def micro_batch(index):
        rows = {
            name: _micro_batch(tensor, index, run.num_accumulation_steps)
            for name, tensor in features.items()
        }
        seed = _dropout_seed(run, device.rank, seen, index)
        sums = losses.compute(rows, True, seed)
        return sums["loss"] / weight, {
            name: value / weight for name, value in sums.items()
        }

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
    clipped = optimization.clip(
        pairs, run.clip_norm, run.npu_bert_clip_by_global_norm, norm
    )
    # The norm is there once every gradient is: no weight changes under an
    # operation that still reads it.
    with tf.control_dependencies([norm]):
        update = chain.apply_gradients(clipped, global_step)
    with tf.control_dependencies([update] + [sums[n] for n in sorted(sums)]):
        train_op = tf.assign_add(seen, 1).op
    # All processes must see the same numbers to come to the same conclusion.
    (seen_norm,) = device.average([norm]) if guard.mode != "off" else [norm]
    report = dict(
        sums,
        learning_rate=rate,
        gradient_norm=seen_norm,
        tokens=_tokens(features, config) * device.world_size,
    )
    with tf.control_dependencies([train_op]):
        report.update(
            {
                name: tf.identity(value)
                for name, value in dict(
                    device.overflow(chain),
                    global_step=global_step,
                    batches_seen=seen,
                ).items()
            }
        )
    hook = progress.ProgressHook(
        report,
        (seen, global_step),
        every=run.display_loss_steps,
        is_logging=device.rank == 0,
        log_dir=run.log_dir,
        num_train_steps=num_train_steps,
        examples_per_step=run.batch_size * device.world_size,
        gradient_names=[
            optimization.variable_name(v) for g, v in pairs if g is not None
        ],
        save_timer=save_timer,
        weight_norm=_weight_norm(device),
        guard=guard,
        chance=losses.chance,
    )
    return tf.estimator.EstimatorSpec(
        tf.estimator.ModeKeys.TRAIN,
        loss=device.without_nan(sums["loss"]),
        train_op=train_op,
        training_hooks=device.hooks() + [hook],
    )


def _weight_norm(device):
    if not device.runs_between_steps:
        return None
    return optimization.global_norm(tf.trainable_variables())


def _tokens(features, config):
    """How many tokens a step's sequences have, padding left out.

    One device's own: like lengths come together, and no message is sent for
    a number that is only shown.
    """
    return tf.reduce_sum(
        tf.cast(
            tf.not_equal(features["input_ids"], config.pad_token_id), tf.float32
        )
    )


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
    counter = tf.cast(seen, tf.int64) * run.num_accumulation_steps + tf.cast(
        index, tf.int64
    )
    return tf.stack(
        [
            tf.constant(key, tf.int32),
            tf.cast(tf.floormod(counter, 2**31 - 1), tf.int32),
        ]
    )


def _optimizer(config, run, rate):
    return optimization.OPTIMIZERS[run.optimizer_type](
        rate,
        beta1=run.adam_beta1,
        beta2=run.adam_beta2,
        epsilon=run.adam_epsilon,
        weight_decay_rate=run.weight_decay_rate,
        rate_factor=functools.partial(
            optimization.layer_wise_factor,
            decay=run.layerwise_lr_decay,
            num_layers=config.num_hidden_layers,
        ),
    )
