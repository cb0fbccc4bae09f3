# SPDX-License-Identifier: Apache-2.0
"""The training loop: resuming, signals, rollback, TensorFlow's errors."""

import contextlib
import re
import signal
import sys
import threading

import tensorflow.compat.v1 as tf

from common import errors
from training import checkpoints, divergence, progress, warm_start

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Whether a signal asked the process to end.

    Attributes:
      number: of the signal, None without one.
    """

    def __init__(self):
        self.number = None

    @property
    def exit_code(self):
        """128 + the signal's number, as a shell tells it."""
        return 128 + (self.number or signal.SIGTERM)

    @contextlib.contextmanager
    def watched(self, can_wait):
        """Within it, signals are noted instead of ending the process.

        A second SIGINT ends it at once; a second SIGTERM, which schedulers
        like to send, does not.

        Args:
          can_wait: False lets a signal end the process at once, even in the
            midst of a call of the device.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals to the main thread alone
            return
        handler = self._note if can_wait else signal.SIG_DFL
        before = [
            (number, signal.signal(number, handler)) for number in SIGNALS
        ]
        try:
            yield
        finally:
            for number, old in before:
                signal.signal(number, old)

    def _note(self, number, frame):
        del frame
        self.number = self.number or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


class StopHook(tf.train.SessionRunHook):
    """Ends training after the step in which a signal came.

    The end of a session saves a checkpoint. Several processes have to end
    after the same step: each step averages the wish over them.

    Attributes:
      has_stopped: whether training ended for that reason.
    """

    def __init__(self, interruption, device):
        self._interruption = interruption
        self._device = device
        self._wish = self._wishes = None
        self.has_stopped = False

    def begin(self):
        if self._device.world_size > 1 and self._device.stops_together:
            self._wish = tf.placeholder_with_default(0.0, [], "stop_wish")
            (self._wishes,) = self._device.average([self._wish])

    def before_run(self, run_context):
        if self._wishes is None:
            return None
        wish = 1.0 if self._interruption.number else 0.0
        return tf.train.SessionRunArgs(self._wishes, {self._wish: wish})

    def after_run(self, run_context, run_values):
        if self._device.stops_together and (
            self._interruption.number is not None
            if self._wishes is None
            else run_values.results > 0
        ):
            self.has_stopped = True
            run_context.request_stop()


def train(
    estimator,
    batches,
    input_fn,
    *,
    run,
    device,
    num_train_steps,
    save_timer,
    guard=None,
):
    """Trains up to num_train_steps, going on where output_dir left off.

    SIGTERM and SIGINT save a checkpoint and end the process with 143 and 130.

    Args:
      estimator: from device.estimator.
      batches: input_pipeline.Batches that input_fn reads.
      input_fn: function of the first batch's number giving a dataset.
      run: RunConfig.
      device: the device.
      num_train_steps: updates in all.
      save_timer: the progress.SaveTimer given to `train_spec`.
      guard: the divergence.Guard given to `train_spec`.

    Raises:
      errors.UserError: a batch cannot be made, or training is stuck.
    """
    guard = guard or divergence.new_guard(run)
    _check_guard(run, device)
    tf.logging.info(
        "global_batch=%d train_batch_size=%d num_accumulation_steps=%d "
        "devices=%d learning_rate=%g num_train_steps=%d",
        run.batch_size * device.world_size,
        run.train_batch_size,
        run.num_accumulation_steps,
        device.world_size,
        run.learning_rate,
        num_train_steps,
    )
    signals = Interruption()
    stop = StopHook(signals, device)
    with reported(batches, run.output_dir), signals.watched(
        device.stops_together
    ):
        while not _train_once(
            estimator,
            input_fn,
            run,
            device,
            guard,
            stop,
            num_train_steps,
            save_timer,
        ):
            pass
    if stop.has_stopped:
        device.agree(0)  # rank 0 has saved
    if stop.has_stopped or signals.number:
        device.close()
        tf.logging.warning(
            "ended by a signal; %s is there, and the same command goes on "
            "from it",
            checkpoints.newest(run.output_dir),
        )
        sys.exit(signals.exit_code)


def _check_guard(run, device):
    if run.divergence_guard == "rollback" and not device.stops_together:
        raise errors.UserError(
            f"--divergence_guard=rollback on {device.world_size} NPUs: they "
            "cannot restore a checkpoint together in one process; use "
            "--divergence_guard=stop and start again"
        )
    if not device.stops_together:
        tf.logging.info(
            "a signal ends this process at once; the run then "
            "goes on from its last periodic checkpoint"
        )


def _train_once(
    estimator, input_fn, run, device, guard, stop, num_train_steps, save_timer
):
    """Trains from the newest checkpoint; False after a rollback."""
    latest = checkpoints.newest(run.output_dir)
    skips = divergence.Skips(run.output_dir)
    first, skipped = skips.resume(checkpoints.batches_seen(latest))
    first = device.agree(first)
    guard.skipped = device.agree(skipped)
    if latest:
        tf.logging.info("going on from %s, batch %d", latest, first)
        step = checkpoints.global_step(latest)
        if step >= num_train_steps:
            tf.logging.info(
                "step=%d of num_train_steps=%d: nothing is left to train",
                step,
                num_train_steps,
            )
    try:
        estimator.train(
            lambda params: input_fn(first),
            max_steps=num_train_steps,
            hooks=[stop, progress.StartHook(first)],
            saving_listeners=[save_timer] if device.rank == 0 else [],
        )
    except divergence.Diverged as diverged:
        _roll_back(run, device, guard, diverged.trouble)
        return False
    return True


def _roll_back(run, device, guard, trouble):
    """Makes a checkpoint from before the trouble the newest one.

    Raises:
      errors.UserError: that is not possible.
    """
    problem = None
    if device.rank == 0:
        try:
            _restore_before(run, trouble)
        except (errors.UserError, OSError) as error:
            problem = error
    if device.agree(int(problem is not None)):
        raise problem or errors.UserError(str(trouble))
    guard.detector.forget()


def _restore_before(run, trouble):
    skips = divergence.Skips(run.output_dir)
    if skips.rollbacks >= run.divergence_max_rollbacks:
        raise errors.UserError(
            f"the run diverged: {trouble}; rollbacks so far: "
            f"{skips.rollbacks}, and --divergence_max_rollbacks is "
            f"{run.divergence_max_rollbacks}; use a lower --learning_rate or a "
            "longer warm-up"
        )
    written = [
        (path, checkpoints.batches_seen(path))
        for path in checkpoints.listed(run.output_dir)
        if not checkpoints.damage(path)
    ]
    place = divergence.rollback_target(written, trouble, skips)
    path, seen = written[place]
    skips.add(seen, trouble.end)
    checkpoints.keep(run.output_dir, [p for p, _ in written[: place + 1]])
    tf.logging.warning(
        "rollback %d of at most %d to %s: %s; going on at batch %d",
        skips.rollbacks,
        run.divergence_max_rollbacks,
        path,
        trouble,
        trouble.end,
    )


@contextlib.contextmanager
def reported(batches, output_dir=""):
    """Turns TensorFlow's errors into those that a user can mend."""
    try:
        yield
    except tf.errors.OpError as error:
        batches.raise_error()
        message = _reason(error, output_dir)
        if message:
            raise errors.UserError(message) from error
        raise


# Words of TensorFlow's messages about files.
_DISK_FULL = re.compile(r"No space left|Disk quota|File too large")

_NOT_WRITABLE = re.compile(
    r"Permission denied|Read-only file system|"
    r"No such file or directory"
)


def _reason(error, output_dir):
    """What a user can mend of an error of TensorFlow's, or ""."""
    text = str(error)
    found = _DISK_FULL.search(text) or _NOT_WRITABLE.search(text)
    line = next(
        (
            line.strip()
            for line in text.splitlines()
            if not found or found.group() in line
        ),
        "",
    )
    if found:
        latest = output_dir and checkpoints.newest(output_dir)
        return (
            "TensorFlow cannot use its files in %s: %s (%s); %s, then "
            "the same command goes on from %s"
            % (
                output_dir or "the output directory",
                found.group(),
                line,
                "free some space"
                if _DISK_FULL.search(text)
                else "make it usable",
                latest or "the start",
            )
        )
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return (
            f"out of memory: {line}; use a smaller --train_batch_size and a "
            "larger --num_accumulation_steps"
        )
    return warm_start.reason(text, output_dir)
