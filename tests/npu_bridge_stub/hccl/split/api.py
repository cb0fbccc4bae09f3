# SPDX-License-Identifier: Apache-2.0
"""How allreduces of gradients are put together."""

import tensorflow.compat.v1 as tf
from npu_bridge._standin import collective, settings, system


def _check_time():
    if tf.get_collection(collective.GRADIENTS):
        raise RuntimeError(
            "the split strategy comes too late: an allreduce is built already"
        )


@settings.api()
def set_split_strategy_by_idx(idxList, group="hccl_world_group"):
    """Segments end at these gradients, the last one at the last gradient."""
    _check_time()
    if not idxList or any(not isinstance(i, int) or i < 0 for i in idxList):
        raise ValueError(
            f"idxList is {idxList!r}; expected indices of gradients"
        )
    if sorted(set(idxList)) != list(idxList):
        raise ValueError(f"idxList is {idxList!r}; expected it ascending")
    system.set_split("split_by_index", group, idxList)


@settings.api()
def set_split_strategy_by_size(dataSizeList, group="hccl_world_group"):
    """Segments carry these percentages of all data."""
    _check_time()
    if not dataSizeList or abs(sum(dataSizeList) - 100) > 1e-6:
        raise ValueError(
            f"dataSizeList is {dataSizeList!r}; expected percentages that sum "
            "to 100"
        )
    system.set_split("split_by_size", group, dataSizeList)
