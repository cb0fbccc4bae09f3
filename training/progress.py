# SPDX-License-Identifier: Apache-2.0
"""Progress of a training run: log lines, TensorBoard scalars, stuck runs.

`step=1200 loss=2.314512 learning_rate=4.900000e-04 examples_per_second=812.4
tokens_per_second=98304.0 loss_scale=32768 overflows=1 time_left=0:12:31
epoch=1.503 gradient_norm=0.8125 peak_memory_gigabytes=7.42 mfu=0.412`: the same
keys on every device. The scalars have the same names; those of an evaluation
begin with `eval/`.
"""

import collections
import datetime
import math
import time
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from common import errors
from training import divergence, metrics_file, run_config

# {entry of the report, of a step: its sum over the time that it took}.
_RATES = {"tokens": "tokens_per_second", "peak_seconds": "mfu"}
# Entries of the report without a scalar of their own.
_COUNTERS = ("finite", "batches_seen", "global_step", "records_seen", *_RATES)
# Numbers of the log line, in this order, accuracies after them.
_FORMATS = {
    "loss": ".6f",
    "learning_rate": ".6e",
    "examples_per_second": ".1f",
    "tokens_per_second": ".1f",
    "loss_scale": "g",
    "overflows": "d",
}
_LAST_FORMATS = {
    "epoch": ".3f",
    "gradient_norm": ".4f",
    "peak_memory_gigabytes": ".2f",
    "mfu": ".3f",
}
# Skipped steps in a row after which a run is stuck: a scale of 2**15 is at
# its minimum of 1 after 15.
MAX_OVERFLOWS_IN_A_ROW = 40
# Fine-tuning that still guesses after this many steps seldom recovers.
STUCK_AFTER_STEPS = 300


def scalar_writer(directory: str, name: str) -> tf.summary.FileWriter:
    """A writer of a separate event file.

    TensorFlow names event files by the second, so the estimator's would
    overwrite one opened in the same second.
    """
    return tf.summary.FileWriter(directory, filename_suffix="." + name)


def add_scalars(
    writer: tf.summary.FileWriter,
    scalars: typing.Mapping[str, float],
    step: int,
) -> None:
    """Writes TensorBoard scalars: {name: number} at a global step."""
    writer.add_summary(
        tf.Summary(
            value=[
                tf.Summary.Value(tag=name, simple_value=value)
                for name, value in sorted(scalars.items())
            ]
        ),
        step,
    )
    writer.flush()


class StartHook(tf.train.SessionRunHook):
    """Sets batches_seen and records_seen to where a session begins.

    That is the checkpoint's numbers, except after a rollback.
    """

    def __init__(
        self, batches: int, records: int, started: typing.Callable[[], None]
    ):
        """
        Args:
          batches: batches_seen.
          records: records_seen.
          started: called after each call of the session.
        """
        self._values = {"batches_seen": batches, "records_seen": records}
        self._started = started
        self._variables = []

    def begin(self):
        self._variables = [
            v for v in tf.global_variables() if v.op.name in self._values
        ]

    def after_create_session(self, session, coord):
        for variable in self._variables:
            value = self._values[variable.op.name]
            if session.run(variable) != value:
                variable.load(value, session)

    def after_run(self, run_context, run_values):
        self._started()


class ProgressHook(tf.train.SessionRunHook):
    """Logs, writes scalars, and stops a run that does not learn."""

    def __init__(
        self,
        training: run_config.Training,
        report: typing.Dict[str, tf.Tensor],
        counters: typing.Tuple[tf.Variable, tf.Variable],
        *,
        gradient_names: typing.Sequence[str],
        weight_norm: typing.Optional[tf.Tensor] = None,
        chance: typing.Optional[float] = None,
    ):
        """
        Args:
          training: the run.
          report: {name: scalar}; loss, learning_rate, gradient_norm,
            global_step, batches_seen, records_seen, tokens (of a step on all
            devices, without padding), peak_seconds (that a step would take at
            the device's peak) where that is known, and loss_scale where there
            is one. `finite`, a bool vector, tells which gradients are finite.
          counters: batches_seen and global_step.
          gradient_names: the variables of `finite`.
          weight_norm: scalar that is computed once per line, in a call of its
            own; None where that is expensive.
          chance: the loss of a model that learned nothing, or None.
        """
        self._training = training
        self._global_batch = (
            training.run.batch_size
            * training.device.world_size
            * training.sequences_per_row
        )
        self._tensors = report
        self._counters = counters
        self._gradient_names = gradient_names
        self._weight_norm = weight_norm
        self._chance = chance
        self._writer = None
        self._losses = []
        self._sums = collections.Counter()  # of _RATES, since the last report
        self._overflows_in_a_row = 0
        self._last = None  # (batches, seconds) at the last report
        self._line_time = -math.inf  # of the last line
        self._previous = None  # (batches, steps) after the last call

    def after_create_session(self, session, coord):
        self._previous = tuple(
            int(value) for value in session.run(self._counters)
        )
        self._last = None
        if self._training.device.rank == 0 and self._writer is None:
            self._writer = scalar_writer(self._training.run.log_dir, "train")

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._tensors)

    def after_run(self, run_context, run_values):
        values = run_values.results
        batches = int(values["batches_seen"])
        step = int(values["global_step"])
        before, self._previous = self._previous, (batches, step)
        seen = divergence.Observation(
            before[0],
            batches - before[0],
            step,
            step - before[1],
            float(values["loss"]),
            float(values["gradient_norm"]),
        )
        self._training.guard.observe(seen)
        self._check(values, seen)
        if math.isfinite(seen.loss):
            self._losses.append(seen.loss)
        for name in set(_RATES) & set(values):
            # Of several steps in one call, only the last one is reported.
            self._sums[name] += float(values[name]) * seen.batches
        now = time.time() - self._training.save_timer.seconds
        every = self._training.run.display_loss_steps
        due = batches // every > seen.batch // every
        if self._writer is not None:
            is_last = step >= self._training.num_train_steps
            self._write(run_context, values, now, due or is_last)
        if self._last is None or due:
            self._last = (batches, now)  # leaves out the first call
            self._sums.clear()
        self._training.bar.update(step - self._training.bar.n)

    def end(self, session):
        if self._writer is not None:
            self._writer.close()

    def _check(self, values, seen):
        """Raises errors.UserError when the run is stuck or lost."""
        if seen.updates:
            self._overflows_in_a_row = 0
            if "loss_scale" not in values and not math.isfinite(seen.loss):
                raise errors.UserError(
                    f"the loss is {seen.loss} at step {seen.step}; use a lower "
                    "--learning_rate, a longer warm-up, or "
                    "--npu_bert_loss_scale=0 with half precision"
                )
            return
        self._overflows_in_a_row += seen.batches
        if self._overflows_in_a_row >= MAX_OVERFLOWS_IN_A_ROW:
            raise errors.UserError(
                f"{self._overflows_in_a_row} steps in a row overflowed after "
                f"step {seen.step}, the loss scale is down to "
                f"{values['loss_scale']:g}{self._first_overflow(values)}; use "
                "a lower --learning_rate or float32"
            )

    def _first_overflow(self, values):
        if "finite" not in values:
            return ""
        names = zip(self._gradient_names, values["finite"])
        first = next((name for name, finite in names if not finite), "")
        return first and (
            f"; the first gradient that is not finite is that of {first}"
        )

    def _write(self, run_context, values, now, is_report):
        """Logs a line if it is time for one; a report has scalars too."""
        seconds = self._training.run.display_loss_seconds or math.inf
        if not is_report and time.time() - self._line_time < seconds:
            return
        scalars = self._scalars(values, now)
        self._log(values, scalars)
        self._line_time = time.time()
        if is_report:
            self._losses = []
            self._report(run_context, scalars)

    def _scalars(self, values, now):
        """{name: number} since the last report."""
        batches, step = self._previous
        scalars = {
            name: float(value)
            for name, value in values.items()
            if name not in _COUNTERS
        }
        scalars["loss"] = (
            np.mean(self._losses) if self._losses else float("nan")
        )
        if self._last is not None and batches > self._last[0]:
            seconds = max(now - self._last[1], 1e-9)
            examples = (batches - self._last[0]) * self._global_batch
            scalars["examples_per_second"] = examples / seconds
            for name, total in self._sums.items():
                scalars[_RATES[name]] = total / seconds
        if "loss_scale" in scalars:
            scalars["overflows"] = batches - step - self._training.guard.skipped
        memory = self._training.device.peak_memory_bytes()
        if memory:
            scalars["peak_memory_gigabytes"] = memory / 1e9
        return scalars

    def _log(self, values, scalars):
        step, formats = self._previous[1], dict(_FORMATS)
        for name in sorted(scalars):
            if name.endswith("accuracy"):
                formats[name] = ".4f"
        words = [f"step={step}"] + _words(scalars, formats)
        if "examples_per_second" in scalars:
            steps = self._training.num_train_steps - step
            left = round(
                steps * self._global_batch / scalars["examples_per_second"]
            )
            words.append(f"time_left={datetime.timedelta(seconds=left)}")
        if self._training.sequences:
            epoch = (
                float(values["records_seen"])
                * self._training.sequences_per_row
                / self._training.sequences
            )
            scalars = dict(scalars, epoch=epoch)
        tf.logging.info("%s", " ".join(words + _words(scalars, _LAST_FORMATS)))

    def _report(self, run_context, scalars):
        """Writes the scalars of a line."""
        step = self._previous[1]
        self._warn_if_stuck(step, scalars["loss"])
        if "masked_lm_accuracy" in scalars:
            scalars["perplexity"] = math.exp(min(scalars["loss"], 700.0))
        if self._weight_norm is not None:
            scalars["weight_norm"] = float(
                run_context.session.run(self._weight_norm)
            )
        add_scalars(self._writer, scalars, step)
        metrics_file.append(self._training.run, "train", step, scalars)

    def _warn_if_stuck(self, step, loss):
        """Warns once when the loss is still that of guessing.

        Large models do that on some seeds (fairseq issue 1114).
        """
        if self._chance is None or step < STUCK_AFTER_STEPS:
            return
        if loss > 0.9 * self._chance:
            tf.logging.warning(
                "loss %.2f at step %d is that of guessing (%.2f): the model "
                "seems stuck; large models often recover with another "
                "--random_seed, a lower --learning_rate or a longer warm-up",
                loss,
                step,
                self._chance,
            )
        self._chance = None


def _words(scalars, formats):
    """`name=number` of the log line."""
    return [
        f"{name}={scalars[name]:{spec}}"
        for name, spec in formats.items()
        if name in scalars
    ]
