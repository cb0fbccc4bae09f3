# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs, and Horovod, for training on several CPUs or GPUs."""

import logging
import os
import pickle
import secrets
import shutil
import subprocess
import tempfile
import typing

import tensorflow.compat.v1 as tf

import device
from common import errors


class Gpu(device.Device):
    """One GPU per process; allocates memory as needed."""

    name = "gpu"

    def __init__(
        self, options: device.DeviceConfig, processes: device.Processes
    ):
        """Limits TensorFlow to this process's GPU.

        TensorFlow creates its devices once, for the first session or the first
        call of tf.data, whichever comes first: all must have the same GPU.

        Raises:
          errors.UserError: the host has fewer GPUs than processes.
        """
        super().__init__(options, processes)
        gpus = tf.config.experimental.list_physical_devices("GPU")
        self._index = _index(len(gpus), processes.local_rank)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.experimental.set_visible_devices(gpus[self._index], "GPU")
        if options.deterministic:
            _make_deterministic()
        if options.use_xla is None:
            tf.logging.info(
                "use_xla=%s: the default of a GPU under TensorFlow %s",
                self.uses_xla,
                tf.__version__,
            )

    @property
    def uses_xla(self) -> bool:
        if self._options.use_xla is None:
            return not tf.__version__.startswith("1.")
        return self._options.use_xla

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
            "--id=" + self._card(),
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
        return text.strip()

    def _card(self):
        """The GPU's number or UUID in nvidia-smi."""
        cards = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        card = cards[self._index] if self._index < len(cards) else ""
        return card.strip() or str(self._index)

    def session_config(self):
        config = super().session_config()
        config.gpu_options.allow_growth = True
        config.gpu_options.visible_device_list = str(self._index)
        if self._options.use_fp16:
            rewriter = config.graph_options.rewrite_options
            rewriter.auto_mixed_precision = 1  # RewriterConfig.ON
        return config


def _make_deterministic():
    if tf.__version__.startswith(("1.", "2.6.")):
        raise errors.UserError(
            f"--deterministic: TensorFlow {tf.__version__} has no "
            "deterministic operations on a GPU; use TensorFlow 2.15 or omit "
            "the flag"
        )
    tf.compat.v2.config.experimental.enable_op_determinism()


def _index(count, local_rank):
    """Which of `count` GPUs a process uses.

    Schedulers such as SLURM show each process its own GPU alone.
    """
    if count == 1:
        return 0
    if local_rank >= count > 0:
        raise errors.UserError(
            f"--horovod: process {local_rank} of this host has no GPU, "
            f"TensorFlow sees {count}; start at most one process per GPU"
        )
    return local_rank


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

    def average(self, tensors, in_fp16=False):
        """Means over the processes; Horovod fuses small tensors."""
        how = {"op": self._hvd.Average}
        if in_fp16:
            how["compression"] = self._hvd.Compression.fp16
        return [self._hvd.allreduce(tensor, **how) for tensor in tensors]

    def agree(self, number):
        return int(
            self._run(
                lambda: self._hvd.broadcast(
                    tf.constant(number, tf.int64), root_rank=0, name="agree"
                )
            )
        )

    def once_per_host(self, make):
        """
        Raises:
          errors.UserError: make() raised one, here or on another host.
        """
        value = problem = None
        if self.local_rank == 0:
            # Before the first session: worker processes are forked.
            try:
                value = make()
            except errors.UserError as error:
                problem = error
        if self._mean(problem is not None):
            raise problem or errors.UserError(
                "another process could not read its input; see its message"
            )
        name = f"roberta_{self.agree(secrets.randbits(62)):x}"
        folder = os.path.join(tempfile.gettempdir(), name)
        path = os.path.join(folder, "value.pickle")
        if self.local_rank == 0:
            os.mkdir(folder, 0o700)
            with open(path, "wb") as stream:
                pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
        self._mean(0)  # waits for the file
        if self.local_rank:
            with open(path, "rb") as stream:
                value = pickle.load(stream)  # noqa: S301, our own file
        self._mean(0)  # waits for the readers
        if self.local_rank == 0:
            shutil.rmtree(folder)
        return value

    def _mean(self, number):
        return self._run(lambda: self.average([tf.constant(float(number))])[0])

    def _run(self, build):
        with tf.Graph().as_default(), tf.Session(
            config=self.session_config()
        ) as session:
            return session.run(build())

    def hooks(self):
        return [self._hvd.BroadcastGlobalVariablesHook(0)]

    def warn_without_nccl(self) -> None:
        if self.world_size > 1 and not self._hvd.nccl_built():
            tf.logging.warning(
                "--horovod: Horovod was built without NCCL, so gradients are "
                "averaged in the host's memory, which is slow; build it with "
                "HOROVOD_GPU_OPERATIONS=NCCL bash scripts/setup.sh --gpu "
                "--horovod"
            )
