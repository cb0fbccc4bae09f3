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
            "a collective with RANK_SIZE=%d: one device has no HCCL, build "
            "none (is_distributed=False)" % count
        )
    for name in ("RANK_TABLE_FILE", "RANK_ID", "JOB_ID"):
        if not environ.get(name):
            raise RuntimeError(
                "a collective with RANK_SIZE=%d, but %s is not "
                "set" % (count, name)
            )
    rank = int(environ["RANK_ID"])
    if not 0 <= rank < count:
        raise RuntimeError(
            "RANK_ID is %d, expected 0 to RANK_SIZE - 1 = %d"
            % (rank, count - 1)
        )
    path = os.path.realpath(environ["RANK_TABLE_FILE"])
    with open(path) as file:
        check_table(json.load(file), count)
    job = hashlib.sha1(("%s\n%s" % (path, environ["JOB_ID"])).encode())
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
        refuse("%s is missing" % error)
    if found != list(range(count)):
        refuse(
            "rank_id are %s, expected 0 to RANK_SIZE - 1 = %d in order"
            % (found, count - 1)
        )


def _check_strings(value):
    if isinstance(value, dict):
        for inner in value.values():
            _check_strings(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(inner)
    elif not isinstance(value, str):
        raise RuntimeError("rank table: %r is not a string" % (value,))


def _check_devices(devices):
    if len(devices) not in (1, 2, 4, 8) or len(set(devices)) != len(devices):
        raise RuntimeError(
            "rank table: a server's devices are %s; a job uses "
            "1, 2, 4 or 8" % devices
        )
    groups = {device // _DEVICES_OF_A_GROUP for device in devices}
    if not groups <= {0, 1} or (len(devices) < 8 and len(groups) > 1):
        raise RuntimeError(
            "rank table: devices %s are not all of 0-3 or all of 4-7" % devices
        )
