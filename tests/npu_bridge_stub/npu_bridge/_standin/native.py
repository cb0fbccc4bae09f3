# SPDX-License-Identifier: Apache-2.0
"""Native operations: one handle, reached through several modules."""

import math
import types

import tensorflow.compat.v1 as tf

from npu_bridge._standin import float_status as status
from npu_bridge._standin import settings


@settings.api()
def gelu(features, name=None):
    """The tanh form, as the adapter's own CPU kernel computes it.

    Inner values are float32: fp16 must not overflow in the cube.
    """
    x = tf.cast(features, tf.float32)
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * tf.pow(x, 3))
    return tf.cast(
        0.5 * x * (1.0 + tf.tanh(inner)), features.dtype, name=name or "Gelu"
    )


@settings.api()
def fast_gelu(features, name=None):
    """x * sigmoid(1.702 x), up to 2e-2 from gelu."""
    x = tf.cast(features, tf.float32)
    return tf.cast(
        x * tf.sigmoid(1.702 * x), features.dtype, name=name or "FastGelu"
    )


@settings.api()
def npu_alloc_float_status(name=None):
    """Float32 [8], a buffer that npu_get_float_status writes into."""
    return status.allocate(name)


@settings.api()
def npu_get_float_status(input_float, name=None):
    """Writes the overflow flag into the allocated buffer."""
    return status.get(input_float, name)


@settings.api()
def npu_clear_float_status(float_status, name=None):
    """Lets the flag down."""
    return _clear([float_status], name)


def _clear(after, name):
    with tf.control_dependencies(after):
        return status.clear(name)


@settings.api()
def adam_apply_one_assign(
    input0,
    input1,
    input2,
    input3,
    input4,
    mul0_x,
    mul1_x,
    mul2_x,
    mul3_x,
    add2_y,
    name=None,
):
    """Adam without bias correction, in place.

    Args:
      input0: gradient; input1: v; input2: m; input3: parameter; input4: rate;
      mul0_x, mul1_x: b1 and 1 - b1; mul2_x, mul3_x: b2 and 1 - b2;
      add2_y: epsilon.
    """
    return _adam(
        input0,
        input1,
        input2,
        input3,
        input4,
        (mul0_x, mul1_x, mul2_x, mul3_x),
        0.0,
        add2_y,
        name,
    )


@settings.api()
def adam_apply_one_with_decay_assign(
    input0,
    input1,
    input2,
    input3,
    input4,
    mul0_x,
    mul1_x,
    mul2_x,
    mul3_x,
    mul4_x,
    add2_y,
    name=None,
):
    """adam_apply_one_assign with a weight decay, mul4_x."""
    return _adam(
        input0,
        input1,
        input2,
        input3,
        input4,
        (mul0_x, mul1_x, mul2_x, mul3_x),
        mul4_x,
        add2_y,
        name,
    )


def _adam(gradient, v, m, parameter, rate, betas, decay, epsilon, name):
    new_m = tf.assign(m, betas[0] * m + betas[1] * gradient)
    new_v = tf.assign(v, betas[2] * v + betas[3] * tf.square(gradient))
    step = new_m / (tf.sqrt(new_v) + epsilon) + decay * parameter
    return tf.group(tf.assign(parameter, parameter - rate * step), name=name)


HANDLE = types.SimpleNamespace(
    gelu=gelu,
    fast_gelu=fast_gelu,
    npu_alloc_float_status=npu_alloc_float_status,
    npu_get_float_status=npu_get_float_status,
    npu_clear_float_status=npu_clear_float_status,
    adam_apply_one_assign=adam_apply_one_assign,
    adam_apply_one_with_decay_assign=adam_apply_one_with_decay_assign,
)

if settings.since_17():

    @settings.api()
    def fast_gelu_v2(features, name=None):
        """fast_gelu, under another name."""
        return fast_gelu(features, name)

    HANDLE.fast_gelu_v2 = fast_gelu_v2

if settings.VERSION == "M":

    @settings.api()
    def npu_get_float_status_v2(name=None):
        """Int32 [8], not all zero after an overflow."""
        return tf.cast(status.read(), tf.int32, name=name)

    @settings.api()
    def npu_clear_float_status_v2(name=None):
        """Lets the flag down."""
        return status.clear(name).op

    HANDLE.npu_get_float_status_v2 = npu_get_float_status_v2
    HANDLE.npu_clear_float_status_v2 = npu_clear_float_status_v2
