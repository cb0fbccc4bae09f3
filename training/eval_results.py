# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: log line, eval_results.txt and TensorBoard."""

import os
import typing

import tensorflow.compat.v1 as tf

from common import files
from training import progress, run_config


def report_results(
    run: run_config.RunConfig, results: typing.Mapping[str, float], step: int
) -> None:
    """Logs an evaluation, writes eval_results.txt, and scalars under `eval/`.

    Args:
      run: flags.
      results: {name: number}. Only floats become scalars.
      step: of the checkpoint evaluated.
    """
    writer = progress.scalar_writer(run.log_dir, "eval")
    log_results(writer, results, step)
    writer.close()
    write_results(
        os.path.join(run.output_dir, "eval_results.txt"),
        dict(results, global_step=step),
    )


def log_results(
    writer: tf.summary.FileWriter,
    results: typing.Mapping[str, float],
    step: int,
) -> None:
    """The log line and the scalars of `report_results`."""
    numbers = sorted(dict(results, global_step=step).items())
    tf.logging.info("%s", " ".join(f"{k}={v:.6g}" for k, v in numbers))
    scalars = {"eval/" + k: v for k, v in numbers if isinstance(v, float)}
    progress.add_scalars(writer, scalars, step)


def write_results(path: str, results: typing.Mapping[str, float]) -> None:
    """Writes `key = value` lines to a file that appears when it is whole."""
    files.write_text(
        path, "".join(f"{key} = {results[key]}\n" for key in sorted(results))
    )
