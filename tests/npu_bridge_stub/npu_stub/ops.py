# SPDX-License-Identifier: Apache-2.0
"""Dropout, LayerNorm and GELU."""

import math
import numbers

import tensorflow.compat.v1 as tf

from npu_stub import graph


def dropout(x, keep_prob, noise_shape, seed, name):
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
    with tf.name_scope(name, "dropout", [x]), graph.own_operations(
        "DropOutDoMask"
    ):
        uniform = tf.random.uniform(_shape(x, noise_shape), seed=seed)
        kept = tf.cast(uniform < keep_prob, x.dtype)
        return x * (kept / tf.cast(keep_prob, x.dtype))


def _shape(x, noise_shape):
    if noise_shape is not None:
        return noise_shape
    return x.shape if x.shape.is_fully_defined() else tf.shape(x)


def layer_norm(
    x, gamma, beta, begin_norm_axis, begin_params_axis, epsilon, name
):
    """[y, mean, variance], with a gradient of its own.

    Args:
      x: float [N, H].
      gamma, beta: [H], of x's type.
      begin_norm_axis, begin_params_axis: the last axis.
      epsilon: added to the variance.
    """
    x, gamma, beta = map(tf.convert_to_tensor, (x, gamma, beta))
    if not x.dtype == gamma.dtype == beta.dtype:
        raise TypeError("x, gamma and beta are of different types")
    if {begin_norm_axis % len(x.shape), begin_params_axis % len(x.shape)} != {
        len(x.shape) - 1
    }:
        raise NotImplementedError("the stub normalizes the last axis")

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        with graph.own_operations("FusedLayerNorm"):
            mean = tf.reduce_mean(x, -1, keepdims=True)
            variance = tf.reduce_mean(tf.square(x - mean), -1, keepdims=True)
            scale = 1.0 / tf.sqrt(variance + epsilon)
            normed = (x - mean) * scale

        def gradient(y, *_):
            with graph.own_operations("FusedLayerNormGrad"):
                inner = y * gamma
                slope = tf.reduce_mean(inner * normed, -1, keepdims=True)
                centre = tf.reduce_mean(inner, -1, keepdims=True)
                rows = list(range(len(x.shape) - 1))
                return (
                    scale * (inner - centre - normed * slope),
                    tf.reduce_sum(y * normed, rows),
                    tf.reduce_sum(y, rows),
                )

        with graph.own_operations("FusedLayerNorm"):
            return (normed * gamma + beta, mean, variance), gradient

    with tf.name_scope(name, "FusedLayerNorm"):
        return list(normalize(x, gamma, beta))


def gelu(features, name=None):
    """The tanh form, as the adapter's own CPU kernel computes it.

    Inner values are float32: fp16 must not overflow in the cube.
    """
    x = tf.cast(features, tf.float32)
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * tf.pow(x, 3))
    return tf.cast(
        0.5 * x * (1.0 + tf.tanh(inner)), features.dtype, name=name or "Gelu"
    )
