# SPDX-License-Identifier: Apache-2.0
"""The overflow flag of the device: state of its own, no test of gradients.

On an Ascend 910 an operation that overflows yields the largest number of its
type and raises a flag, which stays up until it is cleared. A CPU yields inf or
nan instead: `saturate` turns those into what the device would have given and
raises the flag.
"""

import os
import sys
import threading

import numpy as np
import tensorflow.compat.v1 as tf

from npu_stub import graph

_WIDTH = 8  # float32 numbers of a status tensor


def parse_steps(text):
    """Test for membership from "3,7", "2-4" or "5-" (5 and all later)."""
    ranges = []
    for part in text.replace(" ", "").split(","):
        if part:
            first, dash, last = part.partition("-")
            end = (int(last) if last else None) if dash else int(first)
            ranges.append((int(first), end))
    return lambda step: any(
        first <= step and (last is None or step <= last)
        for first, last in ranges
    )


class FloatStatus:
    """The flag, and the updates in which it goes up by itself."""

    def __init__(self, planted=""):
        self._lock = threading.Lock()
        self._up = False
        self._reads = 0
        self._planted = parse_steps(planted)

    def plant(self, steps):
        """Starts counting updates at 1 again, with an overflow in `steps`."""
        with self._lock:
            self._reads, self._up = 0, False
            self._planted = parse_steps(steps)

    def up(self):
        """An operation has overflowed."""
        with self._lock:
            self._up = True

    def clear(self):
        with self._lock:
            self._up = False

    def read(self):
        """Float32 [8], not all zero after an overflow; counts as an update."""
        with self._lock:
            self._reads += 1
            flag = self._up or self._planted(self._reads)
            return np.full([_WIDTH], flag, np.float32)


def is_inf_nan_enabled():
    """Whether an overflow gives inf or nan instead (Atlas A2 and later)."""
    return os.environ.get("NPU_STUB_INF_NAN") == "1"


STATUS = FloatStatus(os.environ.get("NPU_STUB_OVERFLOW_STEPS", ""))


def saturate(tensors):
    """The tensors with inf and nan replaced; raises the flag if any was.

    Args:
      tensors: float tensors, IndexedSlices or None.

    Returns:
      The same as a list; a nan becomes the largest number too.
    """

    def values(tensor):
        if isinstance(tensor, tf.IndexedSlices):
            return tensor.values
        return tensor

    present = [values(t) for t in tensors if t is not None]
    if not present or is_inf_nan_enabled():
        return list(tensors)
    with graph.own_operations():
        bad = tf.logical_not(
            tf.reduce_all(
                tf.stack([tf.reduce_all(tf.is_finite(t)) for t in present])
            )
        )
        raised = graph.py_func(
            lambda is_bad: STATUS.up() if is_bad else None,
            [bad],
            [],
            "FloatStatusUp",
        )
        with tf.control_dependencies([raised]):
            clean = iter([_clean(t) for t in present])

    def rebuilt(tensor):
        if isinstance(tensor, tf.IndexedSlices):
            return tf.IndexedSlices(
                next(clean), tensor.indices, tensor.dense_shape
            )
        return None if tensor is None else next(clean)

    return [rebuilt(t) for t in tensors]


def _clean(tensor):
    largest = tf.constant(tensor.dtype.max, tensor.dtype)
    numbers = tf.where(
        tf.is_nan(tensor), tf.fill(tf.shape(tensor), largest), tensor
    )
    return tf.clip_by_value(numbers, -largest, largest)


def npu_get_float_status_v2():
    """Int32 [8], not all zero after an overflow; counts as an update."""
    with graph.own_operations():
        (status,) = graph.py_func(
            lambda: STATUS.read().astype(np.int32),
            [],
            [tf.int32],
            "NpuGetFloatStatusV2",
        )
        status.set_shape([_WIDTH])
        return status


def npu_clear_float_status_v2():
    """An operation that takes the flag down."""
    with graph.own_operations():
        return graph.py_func(STATUS.clear, [], [], "NpuClearFloatStatusV2")


def get_gen_ops():
    """The native operations."""
    return sys.modules[__name__]


def read_and_clear(after):
    """Float32 [8]: the flag once the tensors `after` are computed."""
    with graph.own_operations():
        with tf.control_dependencies(after):
            (status,) = graph.py_func(
                STATUS.read, [], [tf.float32], "NpuGetFloatStatus"
            )
            status.set_shape([_WIDTH])
        with tf.control_dependencies([status]):
            cleared = graph.py_func(STATUS.clear, [], [], "NpuClearFloatStatus")
        with tf.control_dependencies([cleared]):
            return tf.identity(status)
