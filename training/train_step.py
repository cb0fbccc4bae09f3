# SPDX-License-Identifier: Apache-2.0
"""The training step: losses, their scaled gradients, the update."""

import functools
import typing

import tensorflow.compat.v1 as tf

import optimization
from training import (
    checkpoints,
    evaluation,
    flops,
    progress,
    run_config,
    warm_start,
)


class Losses(typing.NamedTuple):
    """A task's loss.

    Attributes:
      compute: function (features of one micro-batch, is_training,
        dropout_seed) -> {name: float32 scalar}; sums over the micro-batch,
        "loss" among them.
      weight: function (features of any number of sequences) -> float32
        scalar, the divisor of the sum of losses.
      chance: the loss of a model that ignores the text; None turns off the
        warning about a run that is stuck there.
      predicts_tokens: whether the weight is the number of masked tokens, as
        for an LM head.
    """

    compute: typing.Callable
    weight: typing.Callable
    chance: typing.Optional[float] = None
    predicts_tokens: bool = False


def train_spec(
    losses: Losses,
    features: typing.Dict[str, tf.Tensor],
    training: run_config.Training,
) -> tf.estimator.EstimatorSpec:
    """The EstimatorSpec of training.

    Loss and gradients are divided by the weight of the entire global batch,
    over micro-batches and devices alike, as in fairseq.

    Args:
      losses: of the task.
      features: {name: [K * B, ...]}, the sequences of one update.
      training: the run.
    """
    run, device = training.run, training.device
    saver = checkpoints.Saver(run.keep_checkpoint_max)
    tf.add_to_collection(tf.GraphKeys.SAVERS, saver)
    global_step = tf.train.get_or_create_global_step()
    seen = _counter("batches_seen")
    micro, rate = _micro_batches(losses, features, training, seen)
    chain = device.wrap_optimizer(micro, run)
    pairs = chain.compute_gradients(tf.constant(1.0))
    warm_start.load_initial(run, training.head)
    sums = micro.sums
    if run.report_loss or training.guard.mode != "off":
        names = sorted(sums)
        sums = dict(zip(names, device.average([sums[n] for n in names])))
    norm = optimization.global_norm([gradient for gradient, _ in pairs])
    train_op, records = _update(chain, pairs, norm, training, sums, seen)
    report = _report(losses, features, training, sums, norm, rate)
    with tf.control_dependencies([train_op]):
        after = dict(
            device.overflow(chain),
            global_step=global_step,
            batches_seen=seen,
            records_seen=records,
        )
        report.update({n: tf.identity(value) for n, value in after.items()})
    hook = progress.ProgressHook(
        training,
        report,
        (seen, global_step),
        gradient_names=[
            optimization.variable_name(v) for g, v in pairs if g is not None
        ],
        weight_norm=_weight_norm(device),
        chance=losses.chance,
    )
    return tf.estimator.EstimatorSpec(
        tf.estimator.ModeKeys.TRAIN,
        loss=device.without_nan(sums["loss"]),
        train_op=train_op,
        training_hooks=[
            *device.hooks(),
            hook,
            *_hooks_between_steps(training, report["global_step"], saver),
        ],
        scaffold=_scaffold(device),
    )


def _scaffold(device):
    """Does not look for variables without a value: a start gives all one.

    TensorFlow's own operations for that are a tenth of the graph. None, the
    default one, where an adapter has its own.
    """
    if not device.runs_between_steps:
        return None
    none = tf.constant([], tf.string)
    return tf.train.Scaffold(ready_op=none, ready_for_local_init_op=none)


def _hooks_between_steps(training, step, saver):
    """The hooks that evaluate and save, as far as this process does."""
    hooks = []
    if training.evaluation:
        hooks.append(evaluation.EvaluationHook(training, step))
    if training.device.rank == 0 and training.device.runs_between_steps:
        # Last, so that metrics.jsonl has the step that is saved. On an NPU the
        # adapter's own hook saves.
        hooks.append(
            checkpoints.SaverHook(
                training.run.output_dir,
                save_steps=training.run.save_checkpoints_steps,
                saver=saver,
            )
        )
    return hooks


def _micro_batches(losses, features, training, seen):
    """(innermost optimizer with the micro-batches' losses, learning rate)."""
    run, device = training.run, training.device
    (weight,) = device.average([losses.weight(features)])
    weight = tf.maximum(weight, 1.0)
    rate = optimization.scheduled_rate(
        tf.train.get_global_step(),
        run.learning_rate,
        training.num_train_steps,
        training.num_warmup_steps,
        run.learning_rate_schedule,
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

    optimizer = _optimizer(training.config, run, rate)
    return device.micro_batches(optimizer, micro_batch, run), rate


def _update(chain, pairs, norm, training, sums, seen):
    """Updates weights and counters after the losses.

    Returns:
      (operation, the variable that counts records).
    """
    run = training.run
    # After the model's variables, whose random seeds follow their order.
    records = _counter("records_seen")
    clipped = optimization.clip(
        pairs, run.clip_norm, run.npu_bert_clip_by_global_norm, norm
    )
    # The norm needs every gradient, so no weight changes before the last
    # operation that reads it.
    with tf.control_dependencies([norm]):
        update = chain.apply_gradients(clipped, tf.train.get_global_step())
    with tf.control_dependencies([update] + [sums[n] for n in sorted(sums)]):
        updated = tf.no_op()
    with tf.control_dependencies([updated]):
        return tf.group(
            tf.assign_add(seen, 1),
            tf.assign_add(records, run.batch_size * training.device.world_size),
        ), records


def _report(losses, features, training, sums, norm, rate):
    """{name: scalar} of a step, for the log."""
    if training.guard.mode != "off":
        # All processes must see the same norm to decide alike.
        (norm,) = training.device.average([norm])
    return dict(
        sums,
        learning_rate=rate,
        gradient_norm=norm,
        **_work(losses, features, training),
    )


def _counter(name):
    """A variable of a run, int64 scalar, that begins at 0."""
    return tf.get_variable(
        name, [], tf.int64, trainable=False, initializer=tf.zeros_initializer()
    )


def _work(losses, features, training):
    """Tokens of a step, and its seconds at the peak of a known device."""
    device = training.device
    work = {"tokens": _tokens(features, training.config) * device.world_size}
    peak = flops.peak(device)
    if peak:
        operations = flops.of_step(
            training.config,
            features["input_ids"],
            losses.weight(features) if losses.predicts_tokens else None,
            features.get("lengths"),
        )
        work["peak_seconds"] = operations / peak
    return work


def _weight_norm(device):
    if not device.runs_between_steps:
        return None
    return optimization.global_norm(tf.trainable_variables())


def _tokens(features, config):
    """Tokens of a step's sequences on this device, without padding.

    It is not averaged over devices, which would cost a message: batches are
    of like lengths.
    """
    return tf.reduce_sum(
        tf.cast(
            tf.not_equal(features["input_ids"], config.pad_token_id), tf.float32
        )
    )


def _micro_batch(tensor, index, count):
    """Part `index` of `count` equal parts along the first axis."""
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
