# SPDX-License-Identifier: Apache-2.0
"""The format of log lines, and which lines of TensorFlow are shown."""

import logging
import re
import time

import tensorflow.compat.v1 as tf


def set_up_logging(run):
    """Our lines and TensorFlow's warnings, each once, with a time."""
    level = logging.DEBUG if run.verbose_logging else logging.INFO
    _set_up_logger(level, filters=not run.verbose_logging)


def set_up_warnings():
    """Warnings alone, for scripts whose output is an answer."""
    _set_up_logger(logging.WARNING, filters=True)


def _set_up_logger(level, filters):
    logger = tf.get_logger()
    logger.setLevel(level)
    logger.propagate = False  # absl's handler would say it again
    for handler in logger.handlers:
        handler.setFormatter(_Formatter())
        if filters:
            handler.addFilter(_is_of_use)


# What TensorFlow says of itself at every start.
_CHATTER = re.compile(
    r".*eprecat|Estimator's model_fn|Using config|_TPUContext|"
    r"eval_on_tpu ignored|Done calling|"
    r"Running local_init_op|Done running|Graph was finalized|Create Check|"
    r"Skipping training since|.*_loop marked as finished|Inference Time|"
    r"Loss for final step|Saving 'checkpoint_path'|Saving dict|"
    r"Calling checkpoint listeners|Calling model_fn|Running (train|eval|"
    r"infer) on CPU|Error recorded from|Reraising captured error"
)


def _is_of_use(record):
    return not _CHATTER.match(record.getMessage())


class _Formatter(logging.Formatter):
    """`2026-01-31 12:00:00 I message`."""

    def format(self, record):
        return (
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} {record.levelname[0]} "
            f"{record.getMessage()}"
        )
