# SPDX-License-Identifier: Apache-2.0
"""Operations that the stand-in adds to a graph for itself."""

import contextlib

import numpy as np
import tensorflow.compat.v1 as tf

_OWN = "_npu_stand_in"


def attribute_scope(name):
    """Context: every operation built in it has the attribute `name`."""
    # pylint: disable=protected-access
    return tf.get_default_graph()._attr_scope({name: tf.AttrValue(b=True)})


@contextlib.contextmanager
def own_operations():
    """Operations built in it stand for the device: strict passes them over."""
    with attribute_scope(_OWN):
        yield


def is_own(operation):
    """Whether an operation was built in `own_operations`."""
    return _OWN in operation.node_def.attr


def py_func(function, inputs, dtypes, name):
    """tf.py_func of the stand-in; an operation where `dtypes` is empty."""
    if dtypes:
        return tf.py_func(function, inputs, list(dtypes), name=name)

    def run(*arguments):
        function(*arguments)
        return np.int32(0)

    return tf.py_func(run, inputs, [tf.int32], name=name)[0].op
