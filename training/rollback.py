# SPDX-License-Identifier: Apache-2.0
"""Rollback of a diverged run: an earlier checkpoint, the bad batches skipped.

output_dir/rollbacks.json lists jumps (start, end): a run at batch `start`,
where a checkpoint was written, resumes at batch `end`. The list is not part
of a checkpoint, so that a run killed right after a rollback skips the same
batches.

Source: Chowdhery et al. 2022 (arXiv:2204.02311), section 5.1: "we re-started
training from a checkpoint roughly 100 steps before the spike started, and
skipped roughly 200-500 data batches, which cover the batches that were seen
before and during the spike".
"""

import os
import typing

import tensorflow.compat.v1 as tf

from common import errors, files
from training import checkpoints, divergence, run_config

_STATE_FILE = "rollbacks.json"


def resume(directory: str, seen: int) -> typing.Tuple[int, int]:
    """Where a run resumes, given the jumps in its directory.

    Args:
      directory: output_dir.
      seen: batches_seen of the checkpoint to resume from.

    Returns:
      (number of the next batch, batches skipped before it).

    Raises:
      errors.UserError: rollbacks.json is damaged.
    """
    _, jumps = _read(directory)
    return (
        dict(jumps).get(seen, seen),
        sum(end - start for start, end in jumps if start <= seen),
    )


def roll_back(run: run_config.RunConfig, diverged: divergence.Diverged) -> None:
    """Makes a checkpoint from before the first bad batch the newest one.

    A checkpoint from which the run diverged again is not restored a second
    time while there is an older one.

    Raises:
      errors.UserError: no such checkpoint, or too many rollbacks.
    """
    rollbacks, jumps = _read(run.output_dir)
    if rollbacks >= run.divergence_max_rollbacks:
        raise errors.UserError(
            f"the run diverged: {diverged}; rollbacks so far: {rollbacks}, and "
            f"--divergence_max_rollbacks is {run.divergence_max_rollbacks}; "
            "use a lower --learning_rate or a longer warm-up"
        )
    older = [
        (checkpoints.batches_seen(path), path)
        for path in checkpoints.listed(run.output_dir)
        if not checkpoints.damage(path)
    ]
    older = [(seen, path) for seen, path in older if seen <= diverged.first]
    if not older:
        raise errors.UserError(
            f"the run diverged: {diverged}, and all checkpoints left are "
            "newer; keep more with --keep_checkpoint_max, or restart with a "
            "lower --learning_rate"
        )
    if len(older) > 1 and older[-1][0] in dict(jumps):
        older.pop()
    seen, path = older[-1]
    jumps = [jump for jump in jumps if jump[0] < seen] + [(seen, diverged.end)]
    files.write_json(
        os.path.join(run.output_dir, _STATE_FILE),
        {"rollbacks": rollbacks + 1, "skipped": jumps},
    )
    checkpoints.keep(run.output_dir, [path for _, path in older])
    tf.logging.warning(
        "rollback %d of at most %d to %s: %s; resuming at batch %d",
        rollbacks + 1,
        run.divergence_max_rollbacks,
        path,
        diverged,
        diverged.end,
    )


def _read(directory):
    """(number of rollbacks, [(start, end)]) of rollbacks.json."""
    path = os.path.join(directory, _STATE_FILE)
    if not os.path.exists(path):
        return 0, []
    try:
        state = files.read_json(path, "a list of rollbacks", 1 << 20)
        jumps = [(int(start), int(end)) for start, end in state["skipped"]]
        return int(state["rollbacks"]), jumps
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise errors.UserError(
            f"{path}: not a list of skipped batches ({error}); to skip none, "
            'write {"rollbacks": 0, "skipped": []} into it'
        ) from error
