# SPDX-License-Identifier: Apache-2.0
"""Operations that the stub adds to a graph."""

import contextlib

import numpy as np
import tensorflow.compat.v1 as tf

_OWN = "_npu_stub"


@contextlib.contextmanager
def own_operations(operation=""):
    """Operations built in it are the stub's: `strict` ignores them.

    Args:
      operation: the type of the adapter's operation that they make up.
    """
    # pylint: disable=protected-access
    attribute = {_OWN: tf.AttrValue(s=operation.encode())}
    with tf.get_default_graph()._attr_scope(attribute):
        yield


def is_own(operation):
    """Whether an operation or node was built in `own_operations`."""
    return _OWN in getattr(operation, "node_def", operation).attr


def adapter_operation(node):
    """The type of the adapter's operation that a node is a part of."""
    return node.attr[_OWN].s.decode()


def py_func(function, inputs, dtypes, name):
    """tf.py_func of the stub; an operation where `dtypes` is empty."""
    if dtypes:
        return tf.py_func(function, inputs, list(dtypes), name=name)

    def run(*arguments):
        function(*arguments)
        return np.int32(0)

    return tf.py_func(run, inputs, [tf.int32], name=name)[0].op
