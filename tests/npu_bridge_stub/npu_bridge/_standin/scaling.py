# SPDX-License-Identifier: Apache-2.0
"""Loss scaling, as the two optimizers that have it share it."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import float_status, settings
from npu_bridge.hccl import hccl_ops


def scaled(loss, scale):
    """The loss times the scale, in the loss's dtype."""
    loss = loss() if callable(loss) else loss
    return loss * tf.cast(scale, loss.dtype.base_dtype)


def unscaled(gradient, scale):
    """A dense gradient over the scale; None stays None."""
    if gradient is None:
        return None
    gradient = tf.convert_to_tensor(gradient)
    return gradient * tf.cast(1.0 / scale, gradient.dtype.base_dtype)


def apply_if_finite(
    optimizer, manager, is_distributed, grads_and_vars, global_step, name
):
    """Applies gradients unless an operation has overflowed since last time.

    Args:
      optimizer: applies.
      manager: loss scale manager, told the outcome.
      is_distributed: whether an overflow of one rank is one of all.
      grads_and_vars: list of pairs.
      global_step: goes up only if `optimizer` makes it.

    Returns:
      an operation.
    """
    grads_and_vars = list(grads_and_vars)
    clean = float_status.saturate([g for g, _ in grads_and_vars])
    grads_and_vars = [(g, v) for g, (_, v) in zip(clean, grads_and_vars)]
    status = float_status.read_and_clear([g for g in clean if g is not None])
    if is_distributed:
        status = hccl_ops.allreduce(status, "sum", fusion=0)
    finite = tf.reduce_all(
        tf.equal(status, 0.0),
        name="overflow_status_reduce_all" if settings.since_17() else None,
    )
    if not getattr(manager, "_enable_overflow_check", True):
        finite = tf.constant(True)
    update = tf.cond(
        finite,
        lambda: optimizer.apply_gradients(grads_and_vars, global_step, name),
        tf.no_op,
    )
    return tf.group(update, manager.update_loss_scale(finite))
