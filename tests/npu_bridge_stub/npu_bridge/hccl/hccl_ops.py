# SPDX-License-Identifier: Apache-2.0
"""Collective operations; RuntimeError where there is one rank or no HCCL."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import collective, settings

_REDUCIBLE = (tf.int8, tf.int16, tf.int32, tf.float16, tf.float32)
_GATHERED = _REDUCIBLE + (tf.int64, tf.uint64)
_WORLD = "hccl_world_group"


def _check(tensor, dtypes, group):
    if tensor.dtype.base_dtype not in dtypes:
        raise TypeError(
            f"a collective over {tensor.dtype.name}; supported are "
            f"{', '.join(d.name for d in dtypes)}"
        )
    if group != _WORLD:
        raise ValueError(f"group {group!r}; the stand-in has only {_WORLD!r}")


@settings.api()
def allreduce(
    tensor, reduction, fusion=1, fusion_id=-1, group="hccl_world_group"
):
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


@settings.api(only_in={"M": ("fusion", "fusion_id")})
def allgather(tensor, rank_size, group="hccl_world_group"):
    """The ranks' tensors one below the other; rank >= 1."""
    tensor = tf.convert_to_tensor(tensor)
    _check(tensor, _GATHERED, group)
    if tensor.shape.rank == 0:
        raise ValueError("allgather takes no scalar")
    (result,) = collective.build("allgather", None, [tensor], "HcomAllGather")
    rows, all_rows = tensor.shape.as_list()[0], result.shape.as_list()[0]
    if rows is not None and rank_size * rows != all_rows:
        raise ValueError(f"rank_size is {rank_size}, not RANK_SIZE")
    return result


@settings.api()
def broadcast(
    tensor, root_rank, fusion=2, fusion_id=0, group="hccl_world_group"
):
    """A list of tensors as root_rank has them, in all ranks."""
    if not isinstance(tensor, (list, tuple)):
        raise TypeError("broadcast takes a list of tensors")
    tensors = [tf.convert_to_tensor(t) for t in tensor]
    for one in tensors:
        _check(one, _GATHERED, group)
    return collective.build("broadcast", root_rank, tensors, "HcomBroadcast")
