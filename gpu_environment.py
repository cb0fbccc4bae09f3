# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs, and Horovod, for training on several CPUs or GPUs."""

import logging
import math
import os
import pickle
import secrets
import shutil
import subprocess
import tempfile
import typing

import tensorflow.compat.v1 as tf

import device
import kernels as plain
from common import errors

# A uniform fp16 number is one of so many.
_HALF_STEPS = 1024
# The smallest that cuDNN's batch normalization takes.
# Source: TensorFlow's nn_impl.fused_batch_norm.
_LEAST_EPSILON = 1.001e-5


class Gpu(device.Device):
    """One GPU per process; allocates memory as needed."""

    name = "gpu"
    # TensorFlow 1.15's kernel for CPUs, on which tests run, lacks the layout.
    fuses_norm = tf.test.is_built_with_cuda() or not tf.__version__.startswith(
        "1."
    )

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
            return not tf.__version__.startswith(("1.", "2.6."))
        return self._options.use_xla

    @property
    def kernels(self):
        replaced = super().kernels._replace(host=lambda: tf.device("/cpu:0"))
        if not self._options.manual_fp16:
            return replaced
        if self.fuses_norm:
            replaced = replaced._replace(normalize=normalize, norm_dtype=None)
        return replaced._replace(gelu=gelu, dropout=dropout, matmul=matmul)

    def memory_bytes(self) -> typing.Optional[int]:
        text = self._ask("memory.total")
        return int(text) << 20 if text.isdigit() else None

    def peak_memory_bytes(self):
        """What TensorFlow's allocator gave out at most; not under 1.15."""
        ask = getattr(tf.config.experimental, "get_memory_info", None)
        try:
            return ask("GPU:0")["peak"] if ask else None
        except (tf.errors.OpError, RuntimeError, ValueError):
            return None

    def card(self):
        return self._ask("name")

    def versions(self):
        # TensorFlow 1.15 lacks the function; its wheels use CUDA 10.0.
        build = getattr(tf.sysconfig, "get_build_info", dict)()
        return dict(
            super().versions(),
            CUDA=build.get("cuda_version", "10.0 (1.15's wheels)"),
            cuDNN=build.get("cudnn_version", "7"),
            driver=self._ask("driver_version") or "unknown",
            GPU=self.card() or "unknown",
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
            # RewriterConfig.ON
            config.graph_options.rewrite_options.auto_mixed_precision = 1
        return config


def _make_deterministic():
    if tf.__version__.startswith(("1.", "2.6.")):
        raise errors.UserError(
            f"--deterministic: TensorFlow {tf.__version__} has no "
            "deterministic operations on a GPU; use TensorFlow 2.15 or omit "
            "the flag"
        )
    tf.compat.v2.config.experimental.enable_op_determinism()


def gelu(x):
    """kernels.gelu, in fp16 where x is."""
    if x.dtype != tf.float16:
        return plain.gelu(x)

    @tf.custom_gradient
    def unit(x):
        scaled = x * -math.sqrt(0.5)
        # Keeps its digits where 1 + erf would cancel.
        area = 0.5 * tf.math.erfc(scaled)

        def gradient(upstream):
            density = tf.exp(-0.5 * math.log(2 * math.pi) - tf.square(scaled))
            return upstream * (area + x * density)

        return x * area, gradient

    return unit(x)


def dropout(x, rate, seed):
    """kernels.dropout, drawn in fp16 where x is: rate is rounded to 1/1024."""
    if x.dtype != tf.float16:
        return plain.dropout(x, rate, seed)
    shape = x.shape if x.shape.is_fully_defined() else tf.shape(x)
    share = round((1.0 - rate) * _HALF_STEPS) / _HALF_STEPS
    # tf.random.stateless_uniform adds an operation per seed in TensorFlow 2.
    draws = tf.raw_ops.StatelessRandomUniform(
        shape=shape, seed=seed, dtype=x.dtype
    )
    return x * (tf.cast(draws < share, x.dtype) * (1.0 / share))


def normalize(x, gamma, beta, epsilon):
    """kernels.normalize by cuDNN where x is fp16; statistics are float32.

    Each row is a channel of a batch normalization, as in Keras'
    LayerNormalization.

    Args:
      x: float [N, H].
      gamma, beta: float32 [H].
      epsilon: float.

    Returns:
      [N, H] of x's dtype.
    """
    if x.dtype != tf.float16 or epsilon < 1e-5:
        normed = plain.normalize(tf.cast(x, tf.float32), gamma, beta, epsilon)
        return tf.cast(normed, x.dtype)
    rows, width = x.shape.as_list()
    rows = tf.shape(x)[0] if rows is None else rows
    common = dict(
        scale=tf.ones([rows]),
        epsilon=max(epsilon, _LEAST_EPSILON),
        data_format="NCHW",
        is_training=True,
    )

    def channels(matrix):
        return tf.reshape(matrix, [1, rows, width, 1])

    @tf.custom_gradient
    def function(x, gamma, beta):
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=channels(x),
            offset=tf.zeros([rows]),
            mean=tf.constant([]),
            variance=tf.constant([]),
            **common,
        )
        normed = tf.reshape(outputs.y, [rows, width])
        factor = tf.cast(gamma, x.dtype)

        def gradient(upstream):
            inner = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=channels(upstream * factor),
                x=channels(x),
                reserve_space_1=outputs.reserve_space_1,
                reserve_space_2=outputs.reserve_space_2,
                reserve_space_3=outputs.reserve_space_3,
                **common,
            )
            # Sums in float32, unlike tf.reduce_sum of fp16.
            sums = [
                tf.cast(tf.raw_ops.BiasAddGrad(out_backprop=g), tf.float32)
                for g in (upstream * normed, upstream)
            ]
            return [tf.reshape(inner.x_backprop, [rows, width])] + sums

        return tf.nn.bias_add(normed * factor, tf.cast(beta, x.dtype)), gradient

    return function(x, gamma, beta)


def matmul(a, b, transpose_b=False):
    """tf.matmul; an fp16 b [V, H] gets rows of zeros up to a multiple of 8.

    Tensor cores take such sizes alone under CUDA 10, and are faster with them.

    Source: NVIDIA, "Deep Learning Performance: Matrix Multiplication".
    """
    missing = 0
    if transpose_b and b.dtype == tf.float16 and b.shape.ndims == 2:
        missing = -b.shape.as_list()[0] % 8
    if not missing:
        return tf.matmul(a, b, transpose_b=transpose_b)
    padded = tf.pad(b, [[0, missing], [0, 0]])
    return tf.matmul(a, padded, transpose_b=True)[:, :-missing]


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
                f"--horovod: Horovod does not import ({error}); run bash "
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
                "averaged in the host's memory, which is slow; run "
                "HOROVOD_GPU_OPERATIONS=NCCL bash scripts/setup.sh --gpu "
                "--horovod"
            )
