# SPDX-License-Identifier: Apache-2.0
"""Collectives as operations of a graph."""

import threading

import tensorflow.compat.v1 as tf

from npu_stub import exchange, graph, ranks

# Names of operations that carry gradients, with how many each.
GRADIENTS = "npu_stub_gradients"

_lock = threading.Lock()
_exchange = None


def _current_exchange():
    global _exchange  # pylint: disable=global-statement
    with _lock:
        if _exchange is None:
            _exchange = exchange.Exchange(ranks.current())
        return _exchange


def build(kind, option, tensors, name, *, are_gradients=False):
    """The results of one collective over a list of tensors.

    Args:
      kind, option: as in exchange.combine.
      tensors: list of tensors with static shapes.
      name: of the operation.
      are_gradients: whether the split strategy counts them.

    Returns:
      list of tensors.

    Raises:
      RuntimeError: there is one rank, or no HCCL.
    """
    ranks.current()
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    key = []  # the operation's name, known once it is built

    def run(*arrays):
        return _current_exchange().run(key[0], kind, option, list(arrays))

    with graph.own_operations():
        results = graph.py_func(
            run, tensors, [t.dtype.base_dtype for t in tensors], name
        )
        key.append(results[0].op.name)
        if are_gradients:
            tf.add_to_collection(GRADIENTS, (key[0], len(tensors)))
        for tensor, result in zip(tensors, results):
            result.set_shape(tensor.shape)
        return list(results)
