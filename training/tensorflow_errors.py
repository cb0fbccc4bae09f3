# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's errors as one line that says how to fix them."""

import contextlib
import os
import re
import typing

import tensorflow.compat.v1 as tf

from common import errors
from training import checkpoints, input_pipeline

# TensorFlow's messages about files, and the fix.
_FILE_PROBLEMS = (
    (re.compile(r"No space left|Disk quota|File too large"), "free some space"),
    (
        re.compile(
            r"Permission denied|Read-only file system|"
            r"No such file or directory"
        ),
        "make it usable",
    ),
)
_MISSING_KEY = re.compile(r"Key (\S+) not found in checkpoint")


@contextlib.contextmanager
def reported(
    batches: input_pipeline.Batches, output_dir: str = ""
) -> typing.Iterator[None]:
    """Raises errors.UserError for TensorFlow's errors that a user can fix.

    An error that stopped one of `batches` is raised as it was.
    """
    try:
        yield
    except (tf.errors.OpError, ValueError) as error:
        batches.raise_error()
        if output_dir and not os.path.isdir(output_dir):
            raise errors.UserError(
                f"{output_dir}: removed during the run; run the same command "
                "again to start from the beginning"
            ) from error
        if isinstance(error, tf.errors.OpError):
            message = _reason(error, output_dir)
            if message:
                raise errors.UserError(message) from error
        raise


def _reason(error, output_dir):
    """The message for a user, or "" without a known fix."""
    text = str(error)
    for pattern, fix in _FILE_PROBLEMS:
        problem = pattern.search(text)
        if problem:
            return _file_problem(text, problem.group(), fix, output_dir)
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return (
            f"out of memory: {text.strip().splitlines()[0]}; use a smaller "
            "--train_batch_size and a larger --num_accumulation_steps"
        )
    if isinstance(error, tf.errors.DataLossError):
        return _damage(text, output_dir)
    key = _MISSING_KEY.search(text)
    if not key:
        return ""
    return (
        f"the checkpoint in {output_dir} lacks {key.group(1)}, which these "
        "flags need; use the optimizer and the loss scale that it was trained "
        "with (--optimizer_type, --npu_bert_loss_scale), or pass it as "
        "--init_checkpoint with another --output_dir"
    )


def _damage(text, output_dir):
    latest = output_dir and checkpoints.newest(output_dir)
    problem = latest and checkpoints.damage(latest)
    return (
        f"damaged data: {problem or text.strip().splitlines()[0]}; run the "
        "same command again to resume from an undamaged checkpoint"
    )


def _file_problem(text, problem, fix, output_dir):
    line = next(line for line in text.splitlines() if problem in line)
    latest = output_dir and checkpoints.newest(output_dir)
    return (
        "TensorFlow cannot use its files in "
        f"{output_dir or 'the output directory'}: {problem} ({line.strip()}); "
        f"{fix}, then run the same command again to resume from "
        f"{latest or 'the start'}"
    )
