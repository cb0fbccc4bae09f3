# SPDX-License-Identifier: Apache-2.0
"""Who is who in a group; RuntimeError before initialize_system has run."""

import os

from npu_bridge._standin import ranks, settings, system

_WORLD = "hccl_world_group"
_SERVER = 8  # devices of a server
_groups = {}  # name: world ranks


def _members(group):
    system.require_started()
    if group == _WORLD:
        return list(range(ranks.size()))
    if group not in _groups:
        raise RuntimeError(f"there is no group {group!r}")
    return _groups[group]


def _own():
    return int(os.environ.get("RANK_ID", "0"))


def _local(members):
    return [m for m in members if m // _SERVER == _own() // _SERVER]


@settings.api()
def create_group(group, rank_num, rank_ids):
    """A group of some ranks."""
    world = set(_members(_WORLD))
    if rank_num != len(rank_ids) or not set(rank_ids) <= world:
        raise RuntimeError(
            f"group {group!r}: {rank_ids!r} are not {rank_num} ranks of the "
            "world"
        )
    _groups[group] = list(rank_ids)


@settings.api()
def destroy_group(group):
    """Forgets a group."""
    _members(group)
    _groups.pop(group)


@settings.api()
def get_rank_size(group="hccl_world_group"):
    """Ranks of the group."""
    return len(_members(group))


@settings.api()
def get_local_rank_size(group="hccl_world_group"):
    """Ranks of the group on this server."""
    return len(_local(_members(group)))


@settings.api()
def get_rank_id(group="hccl_world_group"):
    """This process's place in the group."""
    return _members(group).index(_own())


@settings.api()
def get_local_rank_id(group="hccl_world_group"):
    """This process's place among the group's ranks on this server."""
    return _local(_members(group)).index(_own())


@settings.api()
def get_world_rank_from_group_rank(group, group_rank_id):
    """The world's rank of a group's rank."""
    return _members(group)[group_rank_id]


@settings.api()
def get_group_rank_from_world_rank(world_rank_id, group):
    """The group's rank of a world's rank."""
    return _members(group).index(world_rank_id)
