# SPDX-License-Identifier: Apache-2.0
"""The choice of a device: the only place that makes it."""

import logging
import os

import tensorflow.compat.v1 as tf

import cpu_environment
import device
import gpu_environment
import npu_environment
from common import errors
from device import DeviceConfig  # noqa: F401 (a public name)


def _disable_v2_behavior():
    """The one compatibility spot: TensorFlow 2 builds then behave as 1.15."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it calls its own function deprecated
    tf.disable_v2_behavior()
    logger.setLevel(level)


def create(options, environ=None):
    """The device that the options ask for, ready to use.

    Args:
      options: device.DeviceConfig.
      environ: the process's variables; None means os.environ.

    Raises:
      errors.UserError: the accelerator asked for by name is not usable here.
    """
    environ = os.environ if environ is None else environ
    _disable_v2_behavior()
    if options.use_xla:
        # On a CPU XLA compiles nothing without it. TensorFlow reads it once,
        # at the first look for devices.
        environ["TF_XLA_FLAGS"] = (
            environ.get("TF_XLA_FLAGS", "") + " --tf_xla_cpu_global_jit"
        )
    name, reason = _choose(options.accelerator)
    processes = device.Processes()
    if name != "npu":
        _refuse_ranks(options, environ, name)
    if name != "npu" and options.horovod:
        processes = gpu_environment.HorovodProcesses()
    tf.logging.info("device=%s reason=%s", name, reason)
    if name == "npu":
        return npu_environment.create(options, environ)
    if name == "gpu":
        return gpu_environment.Gpu(options, processes)
    if options.use_fp16:
        tf.logging.warning(
            "--use_fp16 changes nothing on a CPU: TensorFlow "
            "rewrites graphs to fp16 for GPUs only"
        )
    if options.manual_fp16:
        tf.logging.info(
            "fp16 on a CPU: operands and results are fp16, "
            "products are summed in float32; slower than float32"
        )
    return cpu_environment.Cpu(options, processes)


def _choose(accelerator):
    """(name, why) of the device; errors for one that is not usable."""
    npu_lacks = npu_environment.missing()
    if accelerator == "npu":
        if npu_lacks:
            raise errors.UserError(npu_lacks)
        return "npu", "asked for"
    if accelerator == "cpu":
        return "cpu", "asked for"
    if accelerator == "auto" and not npu_lacks:
        return "npu", "its TensorFlow adapter imports"
    gpus = tf.config.experimental.list_physical_devices("GPU")
    if gpus:
        return "gpu", f"TensorFlow sees {len(gpus)}"
    if accelerator == "gpu":
        raise errors.UserError(
            f"--accelerator=gpu, but TensorFlow {tf.__version__} sees no GPU; "
            "install requirements/gpu.txt and a matching CUDA, or use "
            "--accelerator=cpu"
        )
    return "cpu", "no NPU adapter imports and TensorFlow sees no GPU"


def _refuse_ranks(options, environ, name):
    size = environ.get("RANK_SIZE", "") or "1"
    if options.distributed and not options.horovod and size != "1":
        raise errors.UserError(
            f"--distributed with RANK_SIZE={size} on the {name}: several "
            "processes there train with --horovod, started by horovodrun"
        )
