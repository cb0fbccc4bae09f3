# SPDX-License-Identifier: Apache-2.0
"""The job as its file or the environment describes it."""

import json
import os

from npu_bridge._standin import settings


class DeviceInfo:
    """Which device of which server."""

    @settings.api()
    def __init__(self, index="0", server_id="123456", dev_index=1):
        self._index = str(index)
        self._server_id = server_id
        self._dev_index = dev_index

    @settings.api()
    def is_master_node(self):
        """Whether this is rank 0."""
        return self._index == "0"


class JobConfig:
    """Numbers of a job that nothing here uses."""

    @settings.api()
    def __init__(self, learning_rate=None, batch_size=None):
        self._learning_rate = learning_rate
        self._batch_size = batch_size


class JobInfo:
    """All that is known of a job."""

    @settings.api()
    def __init__(
        self,
        job_id=0,
        job_config=None,
        heartbeat_time=-1,
        region_id=None,
        ak=None,
        sk=None,
        endpoint_url=None,
        device_info=None,
        rank_table_file=None,
        restart_flag=0,
        local_app_dir=None,
        local_data_dir=None,
        local_checkpoint_dir=None,
        local_log_dir=None,
        local_result_dir=None,
        local_boot_file=None,
        rank_size=1,
    ):
        self._job_id = job_id
        self._device_info = device_info
        self._rank_table_file = rank_table_file
        self._local_checkpoint_dir = local_checkpoint_dir
        self._rank_size = int(rank_size)


class NPUBasics:
    """The process's one description of its job, read the first time."""

    _instance = None

    @settings.api()
    def __new__(cls, file_name):
        """
        Args:
          file_name: JSON file of the job; "" reads the environment.

        Raises:
          AttributeError: JOB_ID or RANK_SIZE is not set (ValueError, and for
            JOB_ID only, from r1.7.0 on).
          ValueError: the file lacks something.
        """
        if NPUBasics._instance is None:
            basics = super().__new__(cls)
            basics._jobinfo = (
                _from_file(file_name)
                if file_name
                else _from_environment(os.environ)
            )
            NPUBasics._instance = basics
        return NPUBasics._instance

    @property
    def jobinfo(self):
        return self._jobinfo

    @settings.api()
    def size(self):
        """Ranks of the job."""
        return self.jobinfo._rank_size


def _from_environment(environ):
    error = ValueError if settings.since_17() else AttributeError
    if "JOB_ID" not in environ:
        raise error("the environment variable JOB_ID is not set")
    if "RANK_SIZE" not in environ and not settings.since_17():
        raise error(
            "the environment variable RANK_SIZE is not set, and old "
            "adapters take no default for it"
        )
    return JobInfo(
        job_id=environ["JOB_ID"],
        device_info=DeviceInfo(index=environ.get("RANK_ID", "0")),
        rank_table_file=environ.get("RANK_TABLE_FILE"),
        local_checkpoint_dir=environ.get("LOCAL_CHECKPOINT_DIR"),
        rank_size=environ.get("RANK_SIZE", "1"),
    )


def _from_file(path):
    with open(path) as file:
        job = json.load(file)
    for name in ("device_info", "rank_table_file", "rank_size"):
        if name not in job:
            raise ValueError(f"{path} has no {name}")
    index = job["device_info"].get("Index")
    if index is None or int(index) < 0:
        raise ValueError(
            f"device_info.Index of {path} is {index!r}; expected a whole "
            "number >= 0"
        )
    return JobInfo(
        device_info=DeviceInfo(index=index),
        rank_table_file=job["rank_table_file"],
        rank_size=job["rank_size"],
        local_checkpoint_dir=job.get("local_checkpoint_dir"),
    )
