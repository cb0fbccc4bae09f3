# SPDX-License-Identifier: Apache-2.0
"""Runs a script as one Horovod process on a host with two invented GPUs.

    python tests/helpers/two_gpus.py RANK DIRECTORY SCRIPT ARGUMENTS

Rank 0 writes the numbers that it broadcasts to DIRECTORY/broadcast, rank 1
reads them there, so that it runs after rank 0. DIRECTORY/sessions.RANK gets a
JSON object per line: the GPUs and memory growth of each session and of the
eager context, and "monitored" where a training session is made. There is no
CUDA: TensorFlow computes on the CPU.
"""

import itertools
import json
import os
import runpy
import sys
import types

import tensorflow.compat.v1 as tf
from tensorflow.python.client import session
from tensorflow.python.eager import context
from tensorflow.python.training import monitored_session


def horovod(rank, directory):
    """A module with the names of horovod.tensorflow that are used."""
    path = os.path.join(directory, "broadcast")
    if rank == 0:
        open(path, "w").close()
    sent = (float(line) for line in open(path))

    def broadcast(tensor, root_rank, name):
        del root_rank
        number = tf.get_static_value(tensor) if rank == 0 else next(sent)
        if rank == 0:
            with open(path, "a") as stream:
                stream.write(f"{number}\n")
        return tf.constant(int(number), tf.int64, name=name)

    return types.SimpleNamespace(
        init=lambda: None,
        rank=lambda: rank,
        local_rank=lambda: rank,
        size=lambda: 2,
        nccl_built=lambda: False,
        Average="average",
        Compression=types.SimpleNamespace(fp16="fp16"),
        allreduce=lambda tensor, op, compression=None: tf.identity(tensor),
        broadcast=broadcast,
        BroadcastGlobalVariablesHook=lambda root: tf.train.SessionRunHook(),
    )


def watch(owner, method, describe, write):
    """Calls write(describe(object)) after each call of owner's method."""
    real = getattr(owner, method)

    def call(self, *arguments, **options):
        result = real(self, *arguments, **options)
        write(describe(self))
        return result

    setattr(owner, method, call)


def main(rank, directory, script, *arguments):
    rank = int(rank)
    library = getattr(context, "pywrap_tfe", None) or context.pywrap_tensorflow
    library.TF_ListPhysicalDevices = lambda: [
        b"/physical_device:CPU:0",
        b"/physical_device:GPU:0",
        b"/physical_device:GPU:1",
    ]
    package = types.ModuleType("horovod")
    package.tensorflow = horovod(rank, directory)
    sys.modules["horovod"] = package
    sys.modules["horovod.tensorflow"] = package.tensorflow
    stream = open(os.path.join(directory, f"sessions.{rank}"), "w")

    def write(line):
        stream.write(json.dumps(line) + "\n")
        stream.flush()

    def gpus(config):
        options = config.gpu_options
        return {
            "visible": options.visible_device_list,
            "growth": options.allow_growth,
        }

    watch(
        session.BaseSession, "__init__", lambda self: gpus(self._config), write
    )
    watch(
        monitored_session._MonitoredSession,
        "__init__",
        lambda self: {"monitored": True},
        write,
    )
    initialized = itertools.count()
    real = context.Context.ensure_initialized

    def ensure_initialized(self):
        if next(initialized) == 0:
            write(dict(gpus(self.config), eager=True))
        return real(self)

    context.Context.ensure_initialized = ensure_initialized
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
