# SPDX-License-Identifier: Apache-2.0
"""Loss scales: a fixed one, and one that follows the overflows."""

import numpy as np
import tensorflow.compat.v1 as tf


class FixedLossScaleManager:
    """A loss scale that never changes."""

    def __init__(self, loss_scale, enable_overflow_check=True):
        del enable_overflow_check
        if loss_scale < 1:
            raise ValueError(
                f"loss_scale is {loss_scale:g}; expected at least 1"
            )
        self._loss_scale = tf.convert_to_tensor(loss_scale, dtype=tf.float32)

    def get_loss_scale(self):
        """Float32 scalar."""
        return self._loss_scale

    def update_loss_scale(self, finite_grads):
        """Does nothing."""
        del finite_grads
        return tf.no_op()


class ExponentialUpdateLossScaleManager:
    """Grows after finite steps in a row, shrinks after overflows."""

    def __init__(
        self,
        init_loss_scale,
        incr_every_n_steps,
        decr_every_n_nan_or_inf,
        incr_ratio,
        decr_ratio,
    ):
        self._incr_every_n_steps = incr_every_n_steps
        self._decr_every_n = decr_every_n_nan_or_inf
        self._incr_ratio = incr_ratio
        self._decr_ratio = decr_ratio
        self._loss_scale = _variable("loss_scale", init_loss_scale, tf.float32)
        self._good = _variable("good_steps", 0, tf.int32)
        self._bad = _variable("bad_steps", 0, tf.int32)

    def get_loss_scale(self):
        """Float32 scalar."""
        return self._loss_scale

    def update_loss_scale(self, finite_grads):
        """Counts a step.

        Args:
          finite_grads: bool scalar, False after an overflow.
        """
        return tf.cond(finite_grads, self._after_finite, self._after_overflow)

    def _after_finite(self):
        full = self._good + 1 >= self._incr_every_n_steps
        larger = self._loss_scale * self._incr_ratio
        # Without is_finite, which the device lacks.
        larger = tf.where(
            larger <= np.finfo(np.float32).max,
            larger,
            tf.identity(self._loss_scale),
        )
        return tf.cond(
            full,
            lambda: self._assign(larger, 0, 0),
            lambda: self._assign(None, self._good + 1, None),
        )

    def _after_overflow(self):
        full = self._bad + 1 >= self._decr_every_n
        smaller = tf.maximum(1.0, self._loss_scale * self._decr_ratio)
        return tf.cond(
            full,
            lambda: self._assign(smaller, 0, 0),
            lambda: self._assign(None, 0, self._bad + 1),
        )

    def _assign(self, *values):
        variables = (self._loss_scale, self._good, self._bad)
        return tf.group(
            *(
                tf.assign(variable, value)
                for variable, value in zip(variables, values)
                if value is not None
            )
        )


def _variable(name, value, dtype):
    return tf.Variable(
        tf.constant(value, dtype), name=name, trainable=False, dtype=dtype
    )
