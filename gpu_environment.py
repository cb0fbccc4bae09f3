# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs, and Horovod, for training on several CPUs or GPUs."""

import logging
import subprocess
import typing

import tensorflow.compat.v1 as tf

import device
from common import errors


class Gpu(device.Device):
    """One GPU per process; allocates memory as needed."""

    name = "gpu"

    @property
    def stores_half(self) -> bool:
        return self._options.half_precision

    def memory_bytes(self) -> typing.Optional[int]:
        text = self._ask("memory.total")
        return int(text) << 20 if text.isdigit() else None

    def versions(self):
        # TensorFlow 1.15 lacks the function; its wheels use CUDA 10.0.
        build = getattr(tf.sysconfig, "get_build_info", dict)()
        return dict(
            super().versions(),
            CUDA=build.get("cuda_version", "10.0 (1.15's wheels)"),
            cuDNN=build.get("cudnn_version", "7"),
            driver=self._ask("driver_version") or "unknown",
            GPU=self._ask("name") or "unknown",
        )

    def _ask(self, field):
        """A field of nvidia-smi for this process's GPU, "" if unknown."""
        command = [
            "nvidia-smi",
            "--query-gpu=" + field,
            "--format=csv,noheader,nounits",
        ]
        try:
            text = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=30,
                text=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return ""
        lines = text.strip().splitlines()
        index = self._processes.local_rank
        return lines[index].strip() if index < len(lines) else ""

    def session_config(self):
        config = super().session_config()
        config.gpu_options.allow_growth = True
        config.gpu_options.visible_device_list = str(self._processes.local_rank)
        if self._options.use_fp16:
            rewriter = config.graph_options.rewrite_options
            rewriter.auto_mixed_precision = 1  # RewriterConfig.ON
        return config


class HorovodProcesses(device.Processes):
    """Processes started by horovodrun, one per device."""

    def __init__(self):
        """
        Raises:
          errors.UserError: Horovod is not installed.
        """
        try:
            import horovod.tensorflow as hvd
        except ImportError as error:
            raise errors.UserError(
                f"--horovod: Horovod does not import ({error}); build it with "
                "scripts/setup.sh --horovod, or omit the flag"
            ) from error
        hvd.init()
        self._hvd = hvd
        self.rank = hvd.rank()
        self.local_rank = hvd.local_rank()
        self.world_size = hvd.size()
        logger = tf.get_logger()
        if self.rank and not logger.isEnabledFor(logging.DEBUG):
            logger.setLevel(logging.WARNING)  # rank 0 logs for all

    def average(self, tensors):
        """Means over the processes; Horovod fuses small tensors."""
        return [
            self._hvd.allreduce(tensor, op=self._hvd.Average)
            for tensor in tensors
        ]

    def agree(self, number):
        with tf.Graph().as_default(), tf.Session() as session:
            return int(
                session.run(
                    self._hvd.broadcast(
                        tf.constant(number, tf.int64), root_rank=0, name="agree"
                    )
                )
            )

    def hooks(self):
        return [self._hvd.BroadcastGlobalVariablesHook(0)]
