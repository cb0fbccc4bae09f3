# SPDX-License-Identifier: Apache-2.0
"""Session hooks that NPUEstimator adds."""

import tensorflow.compat.v1 as tf

from npu_stub import hccl_ops, loop


class NPUBroadcastGlobalVariablesHook(tf.train.SessionRunHook):
    """Sends rank root_rank's trainable variables, and no others, at start."""

    def __init__(self, root_rank, index):
        del index
        self._root_rank = root_rank
        self._broadcast = None

    def begin(self):
        variables = tf.trainable_variables()
        values = hccl_ops.broadcast(
            [variable.read_value() for variable in variables], self._root_rank
        )
        self._broadcast = tf.group(
            *(tf.assign(v, value) for v, value in zip(variables, values))
        )

    def after_create_session(self, session, coord):
        session.run(self._broadcast)


class NPUCheckpointSaverHook(tf.train.CheckpointSaverHook):
    """Saves by the step that the session run ended in."""


class SetIterationsVarHook(tf.train.SessionRunHook):
    """Makes one session run that many steps."""

    def __init__(self, iterations_per_loop):
        self._iterations = iterations_per_loop

    def begin(self):
        loop.create_variables()

    def after_create_session(self, session, coord):
        loop.arm(session, self._iterations)
