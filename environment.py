# SPDX-License-Identifier: Apache-2.0
"""The choice of a device: the only place that makes it."""

import logging
import os
import typing

import tensorflow.compat.v1 as tf

import cpu_environment
import gpu_environment
import npu_environment
from common import errors
from device import Device, DeviceConfig, Processes


def _disable_v2_behavior():
    """The one compatibility spot: TensorFlow 2 builds then behave as 1.15."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the function logs its own deprecation
    tf.disable_v2_behavior()
    logger.setLevel(level)


def create(
    options: DeviceConfig,
    environ: typing.Optional[typing.MutableMapping[str, str]] = None,
) -> Device:
    """The device that the options select, ready to use.

    Args:
      options: DeviceConfig.
      environ: the process's environment variables; None means os.environ.

    Raises:
      errors.UserError: the selected accelerator is not usable here.
    """
    environ = os.environ if environ is None else environ
    _disable_v2_behavior()
    if options.use_xla and (
        options.accelerator == "cpu" or not tf.test.is_built_with_cuda()
    ):
        # On a CPU XLA compiles nothing without it. TensorFlow reads it once,
        # when it first lists the devices.
        environ["TF_XLA_FLAGS"] = (
            environ.get("TF_XLA_FLAGS", "") + " --tf_xla_cpu_global_jit"
        )
    name, reason = _choose(options.accelerator)
    if name == "npu":
        device = npu_environment.create(options, environ)
    else:
        device = _create_cpu_or_gpu(name, options, environ)
    tf.logging.info("device=%s reason=%s", name, reason)
    return device


def _choose(accelerator):
    """(name, reason) of the device; errors for one that is not usable."""
    npu_problem = npu_environment.missing()
    if accelerator == "npu" and npu_problem:
        raise errors.UserError(npu_problem)
    if accelerator in ("npu", "cpu"):
        return accelerator, "requested"
    if accelerator == "auto" and not npu_problem:
        return "npu", "its TensorFlow adapter imports"
    gpus = tf.config.experimental.list_physical_devices("GPU")
    if gpus:
        return "gpu", f"TensorFlow sees {len(gpus)}"
    if accelerator == "gpu":
        raise errors.UserError(
            f"--accelerator=gpu: TensorFlow {tf.__version__} sees no GPU; "
            "run bash scripts/setup.sh --gpu on a machine with a matching CUDA "
            "(TF_CPP_MIN_LOG_LEVEL=0 shows what TensorFlow misses), or use "
            "--accelerator=cpu"
        )
    return "cpu", "no NPU adapter imports and TensorFlow sees no GPU"


def _create_cpu_or_gpu(name, options, environ):
    size = environ.get("RANK_SIZE", "") or "1"
    if options.distributed and not options.horovod and size != "1":
        raise errors.UserError(
            f"--distributed with RANK_SIZE={size} on the {name}: several "
            "processes there train with --horovod, started by horovodrun"
        )
    if options.use_bf16 and tf.__version__.startswith(("1.", "2.6.")):
        raise errors.UserError(
            f"--use_bf16: TensorFlow {tf.__version__} has no fast bfloat16 "
            "operations on a CPU, and none on a GPU; use TensorFlow 2.15 or "
            "omit the flag"
        )
    processes = Processes()
    if options.horovod:
        processes = gpu_environment.HorovodProcesses()
    if name == "gpu":
        if options.horovod:
            processes.warn_without_nccl()
        return gpu_environment.Gpu(options, processes)
    return cpu_environment.Cpu(options, processes)
