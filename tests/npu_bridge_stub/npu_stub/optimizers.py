# SPDX-License-Identifier: Apache-2.0
"""Optimizers that average gradients over ranks and scale the loss."""

import tensorflow.compat.v1 as tf

from npu_stub import collective, float_status, hccl_ops, ranks


def _mean(gradients):
    """Means over all ranks; the dense gradients travel together."""
    if any(isinstance(g, tf.IndexedSlices) for g in gradients):
        raise TypeError("IndexedSlices cost two allgathers each; make it dense")
    present = [g for g in gradients if g is not None]
    summed = iter(
        collective.build(
            "allreduce", "sum", present, "HcomAllReduce", are_gradients=True
        )
    )
    return [
        None if g is None else next(summed) / tf.cast(ranks.size(), g.dtype)
        for g in gradients
    ]


class _Wrapper(tf.train.Optimizer):
    def __init__(self, optimizer, name):
        super().__init__(False, name)
        self._optimizer = optimizer

    def get_slot(self, *args, **kwargs):
        return self._optimizer.get_slot(*args, **kwargs)

    def get_slot_names(self, *args, **kwargs):
        return self._optimizer.get_slot_names(*args, **kwargs)

    def variables(self, *args, **kwargs):
        return self._optimizer.variables(*args, **kwargs)


class NPUDistributedOptimizer(_Wrapper):
    """Averages gradients over ranks where RANK_SIZE is above 1."""

    def __init__(self, optimizer, is_weight_update_sharding, name):
        super().__init__(
            optimizer, name or "Distributed" + type(optimizer).__name__
        )
        if is_weight_update_sharding:
            raise ValueError(
                "is_weight_update_sharding takes DEVICE_ID for the rank"
            )

    def compute_gradients(self, *args, **kwargs):
        """The optimizer's gradients, averaged."""
        pairs = self._optimizer.compute_gradients(*args, **kwargs)
        if ranks.size() < 2:
            return pairs
        gradients = float_status.saturate([g for g, _ in pairs])
        return [(g, v) for g, (_, v) in zip(_mean(gradients), pairs)]

    def apply_gradients(self, grads_and_vars, global_step, name):
        return self._optimizer.apply_gradients(
            grads_and_vars, global_step, name
        )


class NPULossScaleOptimizer(_Wrapper):
    """Scales the loss; skips steps that overflowed on any rank."""

    def __init__(self, opt, loss_scale_manager, is_distributed):
        if not isinstance(opt, tf.train.Optimizer):
            raise ValueError(f"opt is {opt!r}; expected a tf.train.Optimizer")
        super().__init__(opt, "NPULossScaleOptimizermodule")
        self._manager = loss_scale_manager
        self._is_distributed = is_distributed

    def compute_gradients(self, loss, **arguments):
        """Unscaled gradients of the scaled loss; none is IndexedSlices."""
        scale = self._manager.get_loss_scale()
        loss = loss() if callable(loss) else loss
        pairs = self._optimizer.compute_gradients(
            loss * tf.cast(scale, loss.dtype.base_dtype), **arguments
        )
        gradients = float_status.saturate([g for g, _ in pairs])

        def unscaled(gradient):
            if gradient is None:
                return None
            gradient = tf.convert_to_tensor(gradient)
            return gradient * tf.cast(1.0 / scale, gradient.dtype.base_dtype)

        return [(unscaled(g), v) for g, (_, v) in zip(gradients, pairs)]

    def apply_gradients(self, grads_and_vars, global_step, name):
        """An update, unless the overflow flag is up; clears the flag."""
        pairs = list(grads_and_vars)
        clean = float_status.saturate([g for g, _ in pairs])
        pairs = [(g, v) for g, (_, v) in zip(clean, pairs)]
        status = float_status.read_and_clear(
            [g for g in clean if g is not None]
        )
        if self._is_distributed:
            status = hccl_ops.allreduce(status, "sum", fusion=0)
        finite = tf.reduce_all(tf.equal(status, 0.0))
        update = tf.cond(
            finite,
            lambda: self._optimizer.apply_gradients(pairs, global_step, name),
            tf.no_op,
        )
        return tf.group(update, self._manager.update_loss_scale(finite))
