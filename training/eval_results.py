# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: log line, eval_results.txt and TensorBoard."""

import math
import os
import typing

import tensorflow.compat.v1 as tf

from common import files
from training import progress, run_config

# The scores that were logged last, by directory of the scalars.
_shown: typing.Dict[str, typing.Mapping[str, float]] = {}


def report_results(
    run: run_config.RunConfig, results: typing.Mapping[str, float], step: int
) -> None:
    """Logs an evaluation, writes eval_results.txt, and scalars under `eval/`.

    Scores that were logged last in this process, by the evaluation after the
    last training step, are not repeated.

    Args:
      run: flags.
      results: {name: number}. Only floats become scalars.
      step: of the checkpoint evaluated.
    """
    path = os.path.join(run.output_dir, "eval_results.txt")
    numbers = dict(results, global_step=step)
    if _are_same(numbers, _shown.get(run.log_dir, {})):
        tf.logging.info("step %d: %s has the scores above", step, path)
    else:
        writer = progress.scalar_writer(run.log_dir, "eval")
        log_results(writer, results, step)
        writer.close()
    write_results(path, numbers)


def _are_same(scores, others):
    """Whether they differ by no more than the order of a sum does."""
    return set(scores) == set(others) and all(
        math.isclose(score, others[name], rel_tol=1e-5)
        for name, score in scores.items()
    )


def log_results(
    writer: tf.summary.FileWriter,
    results: typing.Mapping[str, float],
    step: int,
) -> None:
    """The log line and the scalars of `report_results`."""
    numbers = dict(results, global_step=step)
    _shown[writer.get_logdir()] = numbers
    line = " ".join(f"{k}={v:.6g}" for k, v in sorted(numbers.items()))
    tf.logging.info("%s", line)
    scalars = {
        f"eval/{k}": v for k, v in results.items() if isinstance(v, float)
    }
    progress.add_scalars(writer, scalars, step)


def write_results(path: str, results: typing.Mapping[str, float]) -> None:
    """Writes `key = value` lines to a file that appears when it is whole."""
    files.write_text(
        path, "".join(f"{key} = {results[key]}\n" for key in sorted(results))
    )
