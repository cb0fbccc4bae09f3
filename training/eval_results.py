# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: log line, eval_results.txt and TensorBoard."""

import os

import tensorflow.compat.v1 as tf

from common import files
from training import checkpoints, progress


def report_results(run, results):
    """Logs an evaluation, writes eval_results.txt, and scalars under `eval/`.

    Args:
      run: RunConfig.
      results: {name: number}. Whole numbers are counts, and no scalars;
        global_step is the step of the scalars, else that of the checkpoint
        evaluated.
    """
    tf.logging.info(
        "%s", " ".join("%s=%.6g" % item for item in sorted(results.items()))
    )
    write_results(os.path.join(run.output_dir, "eval_results.txt"), results)
    step = results.get("global_step")
    if step is None:
        step = checkpoints.global_step(
            checkpoints.newest(run.output_dir) or run.init_checkpoint
        )
    writer = progress.scalar_writer(run.log_dir, "eval")
    progress.add_scalars(
        writer,
        {
            "eval/" + name: value
            for name, value in results.items()
            if isinstance(value, float)
        },
        step,
    )
    writer.close()


def write_results(path, results):
    """Writes `key = value` lines; the file appears when it is complete."""
    files.write_text(
        path, "".join(f"{key} = {results[key]}\n" for key in sorted(results))
    )
