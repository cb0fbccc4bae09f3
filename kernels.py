# SPDX-License-Identifier: Apache-2.0
"""GELU, dropout, LayerNorm and look-ups in plain TensorFlow.

A device may replace each of them: see Kernels.
"""

import contextlib
import math
import typing

import tensorflow.compat.v1 as tf


def gelu(x):
    """Exact Gaussian error linear unit, computed in float32.

    Source: Hendrycks & Gimpel 2016; RoBERTa uses the erf form.
    """

    @tf.custom_gradient
    def unit(wide):
        scaled = wide * math.sqrt(0.5)
        area = 0.5 + 0.5 * tf.erf(scaled)

        def gradient(upstream):
            # scaled * density = wide * exp(-wide^2 / 2) / sqrt(2 pi).
            density = tf.exp(-0.5 * math.log(math.pi) - tf.square(scaled))
            return upstream * (area + scaled * density)

        return wide * area, gradient

    return tf.cast(unit(tf.cast(x, tf.float32)), x.dtype)


def dropout(x, rate, seed):
    """Inverted dropout that is a function of its seed alone.

    Args:
      x: float tensor.
      rate: probability of a zero, in [0, 1).
      seed: int32 [2].
    """
    shape = x.shape if x.shape.is_fully_defined() else tf.shape(x)
    # floor is vectorized on a CPU, a comparison is not.
    kept = tf.floor(tf.random.stateless_uniform(shape, seed) + (1.0 - rate))
    return x * tf.cast(kept * (1.0 / (1.0 - rate)), x.dtype)


def bias_add(x, bias):
    """tf.nn.bias_add; the gradient of a bfloat16 bias is summed in float32.

    TensorFlow's BiasAddGrad sums in bfloat16 on a CPU, where 4 + 0.01 is 4.

    Args:
      x: float [N, H].
      bias: [H], dtype of x.
    """
    if x.dtype != tf.bfloat16:
        return tf.nn.bias_add(x, bias)

    @tf.custom_gradient
    def add(x, bias):
        def gradient(upstream):
            # A product is summed in float32 on every device.
            ones = tf.ones([tf.shape(upstream)[0], 1], upstream.dtype)
            return upstream, tf.matmul(upstream, ones, transpose_a=True)[:, 0]

        return tf.nn.bias_add(x, bias), gradient

    return add(x, bias)


def normalize(x, gamma, beta, epsilon):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis.

    Args:
      x: float32 [N, H].
      gamma, beta: float32 [H].
      epsilon: float.

    Source: Ba et al. 2016 (arXiv:1607.06450); its gradient in closed form
    saves half of the passes over memory.
    """

    @tf.custom_gradient
    def function(x, gamma, beta):
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        scale = tf.rsqrt(variance + epsilon)  # [N, 1]
        normed = centred * scale

        def gradient(upstream):
            inner = upstream * gamma
            slope = tf.reduce_mean(inner * normed, axis=-1, keepdims=True)
            return (
                scale
                * (
                    inner
                    - tf.reduce_mean(inner, axis=-1, keepdims=True)
                    - normed * slope
                ),
                tf.reduce_sum(upstream * normed, axis=0),
                tf.reduce_sum(upstream, axis=0),
            )

        return normed * gamma + beta, gradient

    return function(x, gamma, beta)


def gather(table, ids):
    """Rows of a table, with a dense gradient.

    Args:
      table: float [V, H].
      ids: int32 or int64 [N].

    Returns:
      float [N, H].
    """
    count = tf.shape(table)[0]

    @tf.custom_gradient
    def lookup(table, ids):
        return tf.gather(table, ids), lambda upstream: (
            tf.unsorted_segment_sum(upstream, ids, count),
            None,
        )

    return lookup(table, ids)


def embed(table, ids):
    """Rows of the word embeddings, and the table for the tied LM head.

    The gradient of the rows is added in place to the LM head's: the table is
    large, and one pass over it less is seen in the step time.

    Args:
      table: float32 [V, H].
      ids: int32 or int64 [N].

    Returns:
      (float32 [N, H], float32 [V, H]).
    """

    @tf.custom_gradient
    def tied(table):
        def gradient(rows, head):
            if isinstance(rows, tf.IndexedSlices):
                return tf.tensor_scatter_add(
                    head, rows.indices[:, tf.newaxis], rows.values
                )
            return rows + head

        return (tf.identity(table), tf.identity(table)), gradient

    for_rows, for_head = tied(table)
    return tf.gather(for_rows, ids), for_head


class Kernels(typing.NamedTuple):
    """The operations a device may replace; defaults are plain TensorFlow."""

    gelu: typing.Callable = gelu
    dropout: typing.Callable = dropout
    normalize: typing.Callable = normalize
    gather: typing.Callable = gather
    embed: typing.Callable = embed
    matmul: typing.Callable = tf.matmul
    # What LayerNorm reads and writes; None: the dtype of the rows.
    norm_dtype: typing.Optional[tf.DType] = tf.float32
    compute_dtype: tf.DType = tf.float32  # of the encoder
    head_dtype: tf.DType = tf.float32  # of LM head and pooler
    # A context in which small operations run on the host.
    host: typing.Callable = contextlib.nullcontext
    variable_getter: typing.Optional[typing.Callable] = None
