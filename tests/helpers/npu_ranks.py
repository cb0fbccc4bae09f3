# SPDX-License-Identifier: Apache-2.0
"""Runs a command in several processes, each one a rank of an NPU job."""

import json
import os
import pathlib
import sys
import time

from helpers import forked

STAND_IN = pathlib.Path(__file__).resolve().parent.parent / "npu_bridge_stub"


def forget_stub():
    """Removes the stub's modules, by which a later test would see an NPU."""
    for name in list(sys.modules):
        if name.split(".")[0] in (
            "npu_bridge",
            "npu_device",
            "hccl",
            "npu_stub",
        ):
            del sys.modules[name]


def table(ranks):
    """A rank table of one server with 1, 2, 4 or 8 devices."""
    devices = [
        {
            "device_id": str(rank),
            "rank_id": str(rank),
            "device_ip": f"192.168.100.{100 + rank}",
        }
        for rank in range(ranks)
    ]
    return {
        "version": "1.0",
        "status": "completed",
        "server_count": "1",
        "server_list": [{"server_id": "127.0.0.1", "device": devices}],
    }


def environment(rank, ranks, table_file=None, **more):
    """The variables of one rank's process, the stub on its path.

    Args:
      rank: of this process.
      ranks: how many there are.
      table_file: the job's rank table; None for a single device.
      **more: variables that are added.
    """
    variables = dict(
        os.environ,
        JOB_ID="10086",
        RANK_SIZE=str(ranks),
        RANK_ID=str(rank),
        ASCEND_DEVICE_ID=str(rank),
        PYTHONPATH=str(STAND_IN),
        TF_CPP_MIN_LOG_LEVEL="3",
        PYTHONDONTWRITEBYTECODE="1",
        HCCL_CONNECT_TIMEOUT="300",
        HCCL_EXEC_TIMEOUT="300",
    )
    if table_file is not None:
        variables["RANK_TABLE_FILE"] = str(table_file)
    variables.update(more)
    return variables


def launch(commands, folder, *, variables=None, timeout=120):
    """Runs one command a rank at the same time and waits for all.

    The first that fails ends the others.

    Args:
      commands: list of argument lists, one for each rank.
      folder: pathlib.Path; the rank table and the logs go there.
      variables: list of dicts with more variables for each rank, or None.
      timeout: seconds for all of them together.

    Returns:
      list of (exit code, output) in the order of the ranks.
    """
    ranks = len(commands)
    table_file = folder / "rank_table.json"
    table_file.write_text(json.dumps(table(ranks)))
    logs = [folder / (f"rank_{rank}.log") for rank in range(ranks)]
    processes = []
    for rank, command in enumerate(commands):
        more = variables[rank] if variables else {}
        with open(str(logs[rank]), "w") as log:
            processes.append(
                forked.Process(
                    command,
                    environment(rank, ranks, table_file, **more),
                    log,
                    log,
                    folder,
                )
            )
    wait(processes, timeout)
    return [(p.returncode, log.read_text()) for p, log in zip(processes, logs)]


def wait(processes, timeout):
    """Waits for all processes; the first that fails ends the others."""
    deadline = time.time() + timeout
    codes = [None] * len(processes)
    while None in codes and not any(codes) and time.time() < deadline:
        time.sleep(0.05)
        codes = [p.poll() for p in processes]
    # What else fails for the same reason gets the time to say so.
    grace = time.time() + (5 if any(codes) else 0)
    while time.time() < grace and None in [p.poll() for p in processes]:
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
