# SPDX-License-Identifier: Apache-2.0
"""Session hooks that NPUEstimator adds."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import loop, settings
from npu_bridge.estimator.npu import npu_saver, util
from npu_bridge.hccl import hccl_ops


@settings.api(only_in={"D": ("index",), "17": ("index",)})
def broadcast_global_variables(root_rank):
    """Operation that gives all ranks root_rank's trainable variables."""
    variables = tf.trainable_variables()
    values = hccl_ops.broadcast([v.read_value() for v in variables], root_rank)
    return tf.group(
        *(
            tf.assign(variable, value)
            for variable, value in zip(variables, values)
        )
    )


class NPUBroadcastGlobalVariablesHook(tf.train.SessionRunHook):
    """Sends rank root_rank's trainable variables, and no others, at start."""

    @settings.api()
    def __init__(self, root_rank=None, index=None):
        self._root_rank = root_rank
        self._index = index
        self._broadcast = None

    def begin(self):
        self._broadcast = broadcast_global_variables(self._root_rank)

    def after_create_session(self, session, coord):
        session.run(self._broadcast)


class NPUCheckpointSaverHook(tf.train.CheckpointSaverHook):
    """Saves by the step that the session run ended in."""

    @settings.api()
    def __init__(
        self,
        checkpoint_dir,
        save_secs=None,
        save_steps=None,
        saver=None,
        checkpoint_basename="model.ckpt",
        scaffold=None,
        listeners=None,
    ):
        if saver is None and scaffold is None:
            saver = npu_saver.NPUSaver()
        super().__init__(
            checkpoint_dir,
            save_secs=save_secs,
            save_steps=save_steps,
            saver=saver,
            checkpoint_basename=checkpoint_basename,
            scaffold=scaffold,
            listeners=listeners,
        )


class SetIterationsVarHook(tf.train.SessionRunHook):
    """Makes one session run that many steps."""

    @settings.api()
    def __init__(self, iterations_per_loop=None):
        util.check_positive_integer(iterations_per_loop, "iterations_per_loop")
        self._iterations = iterations_per_loop

    def begin(self):
        loop.create_variables(util.create_or_get_var)

    def after_create_session(self, session, coord):
        loop.arm(session, self._iterations, util.create_or_get_var)


class NPUInfeedOutfeedSessionHook(tf.train.SessionRunHook):
    """Runs a host call's operations with each step."""

    @settings.api()
    def __init__(self, dequeue_ops, channel_name):
        self._dequeue_ops = dequeue_ops
        self._channel_name = channel_name

    def begin(self):
        for operation in self._dequeue_ops:
            tf.add_to_collection(loop.EVERY_STEP, operation)

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._dequeue_ops)


class NPULogOutfeedSessionHook(tf.train.SessionRunHook):
    """Would print what the device logs; a CPU logs by itself."""

    @settings.api()
    def __init__(self, output_stream):
        self._output_stream = output_stream
