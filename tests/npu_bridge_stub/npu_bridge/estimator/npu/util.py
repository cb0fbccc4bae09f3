# SPDX-License-Identifier: Apache-2.0
"""Checks, and steps that run on the device in a loop."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import loop, settings


@settings.api()
def check_positive_integer(value, name):
    """Raises TypeError or ValueError unless it is a whole number >= 1."""
    _check_integer(value, name, 1)


@settings.api()
def check_nonnegative_integer(value, name):
    """Raises TypeError or ValueError unless it is a whole number >= 0."""
    _check_integer(value, name, 0)


def _check_integer(value, name, least):
    if not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")


@settings.api()
def create_or_get_var(var_name):
    """An int64 local variable of the loop, in the scope npu_runconfig."""
    with tf.variable_scope("npu_runconfig", reuse=tf.AUTO_REUSE):
        return tf.get_variable(
            var_name,
            shape=[],
            dtype=tf.int64,
            trainable=False,
            initializer=tf.zeros_initializer(),
            use_resource=True,
            collections=[tf.GraphKeys.LOCAL_VARIABLES],
        )


class IterationPerLoop:
    """set_iteration_per_loop in two parts, for graphs finalized between."""

    @settings.api()
    def create_iteration_per_loop_var(self, train_op):
        """The train op to run instead."""
        loop.create_variables(create_or_get_var)
        return tf.group(train_op, name=loop.ITERATION_OP)

    @settings.api()
    def load_iteration_per_loop_var(self, sess, iterations_per_loop=1):
        """Tells the device how many steps to run each time."""
        check_positive_integer(iterations_per_loop, "iterations_per_loop")
        loop.arm(sess, iterations_per_loop, create_or_get_var)


@settings.api()
def set_iteration_per_loop(sess, train_op, iterations_per_loop=1):
    """The train op of which one session run is `iterations_per_loop` steps."""
    if sess.graph.finalized:
        raise RuntimeError(
            "the graph is finalized; call set_iteration_per_loop before"
        )
    with sess.graph.as_default():
        loops = IterationPerLoop()
        train_op = loops.create_iteration_per_loop_var(train_op)
        loops.load_iteration_per_loop_var(sess, iterations_per_loop)
        return train_op
