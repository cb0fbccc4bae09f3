# SPDX-License-Identifier: Apache-2.0
"""Dropout, fused Adam steps, and the collective system's start and end."""

import numbers

import tensorflow.compat.v1 as tf

from npu_bridge._standin import graph, native, settings, system
from npu_bridge.helper import helper

gen_npu_ops = helper.get_gen_ops()
DEFAULT_GRAPH_SEED = 87654321
adam_apply_one_assign = native.adam_apply_one_assign
adam_apply_one_with_decay_assign = native.adam_apply_one_with_decay_assign


@settings.api()
def dropout(x, keep_prob, noise_shape=None, seed=None, name=None):
    """Keeps each element with keep_prob, scaled up by its inverse.

    Seeds go together as in tf.random.get_seed: without any, every run and
    process draws differently.

    Args:
      x: float tensor.
      keep_prob: a number in (0, 1], or a scalar tensor.
      noise_shape: shape of the mask that is broadcast to x, or None.

    Raises:
      RuntimeError: eager execution.
      ValueError: x is no float tensor, or keep_prob out of range.
    """
    if tf.executing_eagerly():
        raise RuntimeError("dropout does not work eagerly")
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise ValueError(f"x must be a float tensor, got {x.dtype.name}")
    if isinstance(keep_prob, numbers.Real):
        if not 0 < keep_prob <= 1:
            raise ValueError(f"keep_prob is {keep_prob:g}, expected (0, 1]")
        if keep_prob == 1:
            return x
    with tf.name_scope(name, "dropout", [x]):
        uniform = tf.random.uniform(_shape(x, noise_shape), seed=seed)
        kept = tf.cast(uniform < keep_prob, x.dtype)
        return x * (kept / tf.cast(keep_prob, x.dtype))


def _shape(x, noise_shape):
    if noise_shape is not None:
        return noise_shape
    return x.shape if x.shape.is_fully_defined() else tf.shape(x)


@settings.api()
def initialize_system(name=None):
    """Operation that starts the collective system of this process."""
    with graph.own_operations():
        return graph.py_func(system.start, [], [], name or "NPUInit")


@settings.api()
def shutdown_system(name=None):
    """Operation that ends it."""
    with graph.own_operations():
        return graph.py_func(system.stop, [], [], name or "NPUShutdown")
