# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumes, rolls back, stops after a signal."""

import sys

import tensorflow.compat.v1 as tf

from common import errors
from training import (
    checkpoints,
    divergence,
    input_pipeline,
    interruption,
    logs,
    progress,
    rollback,
    run_config,
    run_record,
    tensorflow_errors,
)


def train(
    estimator: tf.estimator.Estimator,
    batches: input_pipeline.Batches,
    training: run_config.Training,
) -> None:
    """Trains up to training.num_train_steps, resuming a run in output_dir.

    SIGTERM, SIGINT and SIGHUP save a checkpoint and end the process with 128
    and their number.

    Args:
      estimator: from device.estimator, with a model function that calls
        `train_step.train_spec` with the same `training`.
      batches: of training.
      training: the run.

    Raises:
      errors.UserError: a batch cannot be made, or the run does not learn.
    """
    run, device = training.run, training.device
    _check_guard(run, device)
    record = run_record.begin(training)
    global_batch = run.batch_size * device.world_size
    tf.logging.info(
        "global_batch=%d train_batch_size=%d num_accumulation_steps=%d "
        "devices=%d learning_rate=%g num_train_steps=%d%s",
        global_batch,
        run.train_batch_size,
        run.num_accumulation_steps,
        device.world_size,
        run.learning_rate,
        training.num_train_steps,
        _passes(training, global_batch),
    )
    signals = interruption.Interruption()
    stop = interruption.StopHook(signals, device)
    with tensorflow_errors.reported(batches, run.output_dir), signals.watched(
        device.stops_together
    ):
        while True:
            try:
                _train_from_newest(estimator, batches, training, stop, record)
                break
            except divergence.Diverged as diverged:
                _roll_back(training, diverged)
    if stop.has_stopped:
        device.agree(0)  # rank 0 has saved
    if stop.has_stopped or signals.number:
        tf.logging.warning(
            "interrupted by a signal; saved %s. Run the same command again "
            "to resume",
            checkpoints.newest(run.output_dir),
        )
        sys.exit(signals.exit_code)


def _passes(training, global_batch):
    if not training.sequences:
        return ""
    total = training.num_train_steps * global_batch * training.sequences_per_row
    epochs = training.num_train_epochs or total / training.sequences
    return f" sequences={training.sequences} epochs={epochs:.4g}"


def _check_guard(run, device):
    if device.stops_together:
        return
    if run.divergence_guard == "rollback":
        raise errors.UserError(
            f"--divergence_guard=rollback: {device.world_size} NPUs cannot "
            "restore a checkpoint together in one process; use "
            "--divergence_guard=stop and start again"
        )
    tf.logging.info(
        "a signal ends this process at once; the run then resumes from its "
        "last periodic checkpoint"
    )


def _train_from_newest(estimator, batches, training, stop, record):
    """Trains from the newest checkpoint; Diverged asks for a rollback."""
    run, device = training.run, training.device
    latest = checkpoints.newest(run.output_dir)
    seen = checkpoints.batches_seen(latest)
    global_batch = run.batch_size * device.world_size
    first, skipped = rollback.resume(run.output_dir, seen)
    records = device.agree(
        checkpoints.records_seen(latest, global_batch)
        + (first - seen) * global_batch
    )
    first = device.agree(first)
    batches.shift = records - first * global_batch
    training.guard.skipped = device.agree(skipped)
    step = device.agree(checkpoints.global_step(latest) if latest else 0)
    is_over = training.evaluation and training.evaluation.resume(training, step)
    trains = not is_over and step < training.num_train_steps
    run_record.write(training, record, trains)
    if is_over:
        return
    if not trains:
        # All processes return: Estimator.train would wait for rank 0 in the
        # others, whose directories have no checkpoint.
        tf.logging.info(
            "step=%d of num_train_steps=%d: nothing is left to train; to "
            "train longer, raise --num_train_steps or --num_train_epochs",
            step,
            training.num_train_steps,
        )
        return
    if latest:
        tf.logging.info("resuming from %s at batch %d", latest, first)
    tf.logging.info(
        "building the graph%s",
        "; the first step compiles it, which takes minutes"
        if device.static_shapes
        else "",
    )
    with logs.waiting("before the first step") as started, logs.progress_bar(
        desc="training",
        unit="step",
        initial=step,
        total=training.num_train_steps,
        disable=True if device.rank else None,
    ) as training.bar:
        estimator.train(
            lambda params: input_pipeline.dataset(batches, first),
            max_steps=training.num_train_steps,
            hooks=[stop, progress.StartHook(first, records, started.set)],
            saving_listeners=[training.save_timer] if device.rank == 0 else [],
        )


def _roll_back(training, diverged):
    """Restores a checkpoint on rank 0; all processes fail together."""
    problem = None
    if training.device.rank == 0:
        try:
            rollback.roll_back(training.run, diverged)
        except (errors.UserError, OSError) as error:
            problem = error
    if training.device.agree(int(problem is not None)):
        raise problem or errors.UserError(f"the run diverged: {diverged}")
