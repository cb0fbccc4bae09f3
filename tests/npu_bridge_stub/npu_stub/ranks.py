# SPDX-License-Identifier: Apache-2.0
"""Who this process is among the ranks, from the environment and the table."""

import hashlib
import json
import os
import typing

_DEVICES_OF_A_GROUP = 4  # an Ascend 910 server has two groups of them


class Rank(typing.NamedTuple):
    """One process of a job."""

    rank: int
    size: int
    job: str  # the same for all ranks of a job and for no other job


def size(environ=None):
    """RANK_SIZE as a number; 1 where it is not set."""
    environ = os.environ if environ is None else environ
    return int(environ.get("RANK_SIZE", "1"))


def current(environ=None):
    """This process's Rank, for a collective.

    Raises:
      RuntimeError: HCCL would not come up with these variables.
    """
    environ = os.environ if environ is None else environ
    count = size(environ)
    if count < 2:
        raise RuntimeError(
            f"a collective with RANK_SIZE={count}: one device has no HCCL, "
            "build none (is_distributed=False)"
        )
    for name in ("RANK_TABLE_FILE", "RANK_ID", "JOB_ID"):
        if not environ.get(name):
            raise RuntimeError(
                f"a collective with RANK_SIZE={count}, but {name} is not set"
            )
    rank = int(environ["RANK_ID"])
    if not 0 <= rank < count:
        raise RuntimeError(
            f"RANK_ID is {rank}, expected 0 to RANK_SIZE - 1 = {count - 1}"
        )
    path = os.path.realpath(environ["RANK_TABLE_FILE"])
    with open(path) as file:
        check_table(json.load(file), count)
    job = hashlib.sha1((f"{path}\n{environ['JOB_ID']}").encode())
    return Rank(rank, count, job.hexdigest())


def check_table(table, count):
    """Raises RuntimeError unless the table is one of `count` ranks."""

    def refuse(problem):
        raise RuntimeError("rank table: " + problem)

    _check_strings(table)
    try:
        if (table["version"], table["status"]) != ("1.0", "completed"):
            refuse("version is not 1.0 or status not completed")
        servers = table["server_list"]
        if int(table["server_count"]) != len(servers):
            refuse("server_count is not the length of server_list")
        found = []
        for server in servers:
            if not server["server_id"]:
                refuse("a server has no server_id")
            found += [int(d["rank_id"]) for d in server["device"]]
            _check_devices([int(d["device_id"]) for d in server["device"]])
            if not all(d["device_ip"] for d in server["device"]):
                refuse("a device has no device_ip")
    except KeyError as error:
        refuse(f"{error} is missing")
    if found != list(range(count)):
        refuse(
            f"rank_id are {found}, expected 0 to RANK_SIZE - 1 = {count - 1} "
            "in order"
        )


def _check_strings(value):
    if isinstance(value, dict):
        for inner in value.values():
            _check_strings(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(inner)
    elif not isinstance(value, str):
        raise RuntimeError(f"rank table: {value!r} is not a string")


def _check_devices(devices):
    if len(devices) not in (1, 2, 4, 8) or len(set(devices)) != len(devices):
        raise RuntimeError(
            f"rank table: a server's devices are {devices}; a job uses 1, 2, 4 "
            "or 8"
        )
    groups = {device // _DEVICES_OF_A_GROUP for device in devices}
    if not groups <= {0, 1} or (len(devices) < 8 and len(groups) > 1):
        raise RuntimeError(
            f"rank table: devices {devices} are not all of 0-3 or all of 4-7"
        )
