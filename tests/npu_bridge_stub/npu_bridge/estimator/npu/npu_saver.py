# SPDX-License-Identifier: Apache-2.0
"""The saver of NPUCheckpointSaverHook."""

import tensorflow.compat.v1 as tf


class NPUSaver(tf.train.Saver):
    """Keeps five checkpoints; before master, whatever the config says."""
