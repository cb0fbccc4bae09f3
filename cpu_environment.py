# SPDX-License-Identifier: Apache-2.0
"""The CPU: its products, instructions and memory."""

import functools
import os
import re

import tensorflow.compat.v1 as tf

import device

# A container's own memory limit, by version of Linux's control groups.
_CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_CPU_INFO = "/proc/cpuinfo"
_PROCESS_STATUS = "/proc/self/status"


class Cpu(device.Device):
    """The CPU."""

    name = "cpu"
    stores_half = False  # products are computed from float32 copies

    def __init__(
        self, options: device.DeviceConfig, processes: device.Processes
    ):
        """Hides GPUs from TensorFlow, which otherwise takes their memory.

        Logs what the flags of half precision do on a CPU.
        """
        super().__init__(options, processes)
        if tf.config.experimental.list_physical_devices("GPU"):
            tf.config.experimental.set_visible_devices([], "GPU")
        if options.use_fp16:
            tf.logging.warning(
                "--use_fp16 has no effect on a CPU: TensorFlow rewrites graphs "
                "to fp16 for GPUs only"
            )
        if options.manual_fp16 or options.use_fp16_cls:
            tf.logging.info(
                "fp16 on a CPU: operands and results are fp16, "
                "products are summed in float32; slower than float32, which "
                "--manual_fp16=False --use_fp16_cls=False selects"
            )
        if options.use_bf16 and not _multiplies_bf16():
            tf.logging.warning(
                "--use_bf16: this CPU has neither avx512_bf16 nor amx_bf16, so "
                "bfloat16 will be slower than float32; omit the flag for speed"
            )

    def session_config(self):
        config = super().session_config()
        config.device_count["GPU"] = 0
        return config

    def memory_bytes(self) -> int:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        for path in _CONTAINER_LIMITS:
            if os.path.exists(path):
                with open(path, encoding="ascii") as stream:
                    text = stream.read().strip()
                if text.isdigit():
                    limits.append(int(text))
        return min(limits)

    def peak_memory_bytes(self):
        """The largest resident set of the process, by Linux."""
        if not os.path.exists(_PROCESS_STATUS):
            return None
        with open(_PROCESS_STATUS, encoding="utf-8") as stream:
            peak = re.search(r"VmHWM:\s+(\d+) kB", stream.read())
        return int(peak.group(1)) << 10 if peak else None

    @property
    def kernels(self):
        return super().kernels._replace(matmul=_matmul)


def _multiplies_bf16():
    if not os.path.exists(_CPU_INFO):
        return False
    with open(_CPU_INFO, encoding="utf-8", errors="replace") as stream:
        return bool(re.search(r"\b(avx512|amx)_bf16\b", stream.read()))


def _matmul(a, b, transpose_b=False):
    """Product with operands and result in their dtype, summed in float32.

    The numerics of tensor cores; TF 1.15's own fp16 product on a CPU takes a
    hundred times as long.
    """
    if transpose_b and _is_tall(b):
        product = _tall_matmul
    else:
        product = functools.partial(tf.matmul, transpose_b=transpose_b)
    if a.dtype != tf.float16:
        return product(a, b)
    return tf.cast(
        product(tf.cast(a, tf.float32), tf.cast(b, tf.float32)), tf.float16
    )


def _is_tall(matrix):
    shape = matrix.shape.as_list()
    return len(shape) == 2 and shape[0] > 8 * shape[1]


def _tall_matmul(a, b):
    """a [N, H] times the transpose of a tall b [V, H], as in the LM head.

    TensorFlow's CPU product takes 2.4 times as long to read a tall matrix
    transposed on the right as untransposed on the left (160 x 512 x 50265).
    """

    @tf.custom_gradient
    def product(a, b):
        def gradient(upstream):
            return (
                tf.matmul(upstream, b),
                tf.matmul(upstream, a, transpose_a=True),
            )

        return tf.transpose(tf.matmul(b, a, transpose_b=True)), gradient

    return product(a, b)
