# SPDX-License-Identifier: Apache-2.0
"""State of the collective system of this process."""

from npu_bridge._standin import ranks

_state = {"started": False, "split_by_index": {}, "split_by_size": {}}


def start():
    """Runs with the operation of initialize_system."""
    if ranks.size() > 1:
        ranks.current()
    _state["started"] = True


def stop():
    """Runs with the operation of shutdown_system."""
    _state["started"] = False


def require_started():
    """Raises RuntimeError before `start`."""
    if not _state["started"]:
        raise RuntimeError(
            "the collective system is not initialised: run "
            "npu_ops.initialize_system() in a session first"
        )


def set_split(kind, group, numbers):
    """Keeps a strategy; kind is "split_by_index" or "split_by_size"."""
    _state[kind][group] = list(numbers)


def check_split(gradients, group="hccl_world_group"):
    """Raises ValueError if a strategy by index is for other gradients.

    Args:
      gradients: how many the model's allreduces carry.
    """
    indices = _state["split_by_index"].get(group)
    if not indices or not gradients or group in _state["split_by_size"]:
        return
    last = indices[-1]
    if last != gradients - 1:
        raise ValueError(
            f"set_split_strategy_by_idx ends in {last}, but the last of "
            f"{gradients} gradients is {gradients - 1}"
        )
