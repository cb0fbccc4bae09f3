# SPDX-License-Identifier: Apache-2.0
"""Collective operations; RuntimeError where there is one rank or no HCCL."""

import tensorflow.compat.v1 as tf

from npu_stub import collective

_REDUCIBLE = (tf.int8, tf.int16, tf.int32, tf.float16, tf.float32)
_WORLD = "hccl_world_group"


def _check(tensor, dtypes, group):
    if tensor.dtype.base_dtype not in dtypes:
        raise TypeError(
            f"a collective over {tensor.dtype.name}; expected one of "
            f"{', '.join(d.name for d in dtypes)}"
        )
    if group != _WORLD:
        raise ValueError(f"group {group!r}; the stub has only {_WORLD!r}")


def allreduce(tensor, reduction, fusion=1, fusion_id=-1, group=_WORLD):
    """The sum, prod, max or min of a tensor over all ranks."""
    if reduction not in ("sum", "prod", "max", "min"):
        raise ValueError(
            f"reduction is {reduction!r}; expected sum, prod, max or min"
        )
    if fusion not in (0, 1, 2):
        raise ValueError(f"fusion is {fusion!r}; expected 0, 1 or 2")
    tensor = tf.convert_to_tensor(tensor)
    _check(tensor, _REDUCIBLE, group)

    @tf.custom_gradient
    def reduced(value):
        (result,) = collective.build(
            "allreduce",
            reduction,
            [value],
            "HcomAllReduce",
            are_gradients=fusion == 1,
        )

        def gradient(upstream):
            return allreduce(upstream, reduction, fusion, fusion_id, group)

        return result, gradient

    return reduced(tensor)


def broadcast(tensor, root_rank, fusion=2, fusion_id=0, group=_WORLD):
    """A list of tensors as root_rank has them, in all ranks."""
    del fusion, fusion_id
    if not isinstance(tensor, (list, tuple)):
        raise TypeError("broadcast takes a list of tensors")
    tensors = [tf.convert_to_tensor(t) for t in tensor]
    for value in tensors:
        _check(value, _REDUCIBLE + (tf.int64, tf.uint64), group)
    return collective.build("broadcast", root_rank, tensors, "HcomBroadcast")


def set_split_strategy_by_size(dataSizeList, group):
    """Segments of the gradients' allreduces carry these percentages."""
    del group
    if tf.get_collection(collective.GRADIENTS):
        raise RuntimeError("the split strategy follows the first allreduce")
    if not dataSizeList or abs(sum(dataSizeList) - 100) > 1e-6:
        raise ValueError(
            f"dataSizeList is {dataSizeList!r}; expected percentages that sum "
            "to 100"
        )
