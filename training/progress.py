# SPDX-License-Identifier: Apache-2.0
"""The log line of a training run, its TensorBoard scalars and its watch.

`step=1200 loss=2.314512 learning_rate=4.900000e-04 examples_per_second=812.4
tokens_per_second=98304.0 loss_scale=32768 overflows=1 time_left=0:12:31`: the
same keys on every device. The scalars have the same names; those of an
evaluation begin with `eval/`.
"""

import datetime
import math
import time

import numpy as np
import tensorflow.compat.v1 as tf

from common import errors
from training import divergence

# Of the report, what is no scalar of its own.
_COUNTERS = ("finite", "batches_seen", "global_step", "tokens")
# Skipped steps in a row after which a run is stuck: a scale of 2**15 is at
# its floor of 1 after 15.
MAX_OVERFLOWS_IN_A_ROW = 40
# Fine-tuning that still guesses after this many steps seldom recovers.
STUCK_AFTER_STEPS = 300


class SaveTimer(tf.train.CheckpointSaverListener):
    """Seconds spent on saving checkpoints."""

    def __init__(self):
        self.seconds = 0.0
        self._start = None

    def before_save(self, session, global_step_value):
        del session, global_step_value
        self._start = time.time()

    def after_save(self, session, global_step_value):
        del session, global_step_value
        self.seconds += time.time() - self._start


def scalar_writer(directory, name):
    """A tf.summary.FileWriter with a file of its own.

    TensorFlow names files by the second, and what the estimator opens in the
    same one would overwrite ours.
    """
    return tf.summary.FileWriter(directory, filename_suffix="." + name)


def add_scalars(writer, scalars, step):
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
    """Says at which batch a session begins.

    That is the checkpoint's, except after a rollback.
    """

    def __init__(self, first):
        self._first = first
        self._variable = None

    def begin(self):
        (self._variable,) = [
            v for v in tf.global_variables() if v.op.name == "batches_seen"
        ]

    def after_create_session(self, session, coord):
        del coord
        if session.run(self._variable) != self._first:
            self._variable.load(self._first, session)


class ProgressHook(tf.train.SessionRunHook):
    """Logs, writes scalars, and stops a run that cannot go on."""

    def __init__(
        self,
        report,
        counters,
        *,
        every,
        is_logging,
        log_dir,
        num_train_steps,
        examples_per_step,
        gradient_names,
        save_timer,
        weight_norm=None,
        guard=None,
        chance=None,
    ):
        """
        Args:
          report: {name: scalar tensor}; loss, learning_rate, global_step,
            batches_seen, tokens (those of a step on all devices, padding left
            out), and loss_scale where there is one. `finite`, a bool vector,
            tells which gradients are finite.
          counters: the variables batches_seen and global_step.
          every: steps between two lines.
          is_logging: whether this process writes.
          log_dir: directory of the scalars.
          num_train_steps: the step at which the run ends.
          examples_per_step: sequences of all devices in one step.
          gradient_names: the variables behind `finite`.
          save_timer: SaveTimer.
          weight_norm: scalar tensor that is computed once a line, in a call
            of its own; None where that would be dear.
          guard: divergence.Guard, or None.
          chance: the loss of a model that learned nothing, or None.
        """
        self._report = report
        self._counters = counters
        self._every = every
        self._is_logging = is_logging
        self._log_dir = log_dir
        self._num_train_steps = num_train_steps
        self._examples_per_step = examples_per_step
        self._gradient_names = gradient_names
        self._save_timer = save_timer
        self._weight_norm = weight_norm
        self._guard = guard or divergence.Guard()
        self._chance = chance
        self._writer = None
        self._losses = []
        self._tokens = 0  # since the last line
        self._overflows_in_a_row = 0
        self._last = None  # (batches, steps, seconds) at the last line
        self._previous = None  # (batches, steps) after the last call

    def after_create_session(self, session, coord):
        del coord
        self._previous = tuple(
            int(value) for value in session.run(self._counters)
        )
        self._last = None
        if self._is_logging and self._writer is None:
            self._writer = scalar_writer(self._log_dir, "train")

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._report)

    def after_run(self, run_context, run_values):
        values = run_values.results
        batches = int(values["batches_seen"])
        step = int(values["global_step"])
        before, self._previous = self._previous, (batches, step)
        self._ask_guard(values, before, batches, step)
        self._watch(values, batches - before[0], step - before[1])
        if math.isfinite(values["loss"]):
            self._losses.append(float(values["loss"]))
        # Of several steps in one call, the last one alone is seen.
        self._tokens += float(values["tokens"]) * (batches - before[0])
        now = time.time() - self._save_timer.seconds
        due = batches // self._every > before[0] // self._every
        if self._is_logging and (due or step >= self._num_train_steps):
            self._write(run_context, values, batches, step, now)
        if self._last is None or due:
            self._last = (batches, step, now)  # leaves out the first call
            self._tokens = 0

    def end(self, session):
        del session
        if self._writer is not None:
            self._writer.close()

    def _ask_guard(self, values, before, batches, step):
        reason = self._guard.observe(
            divergence.Observation(
                before[0],
                batches - before[0],
                step,
                step - before[1],
                float(values["loss"]),
                float(values["gradient_norm"]),
            )
        )
        if reason and self._is_logging:
            tf.logging.warning("step=%d batch=%d %s", step, batches - 1, reason)

    def _watch(self, values, batches, steps):
        """Raises errors.UserError when the run is stuck or lost."""
        if steps:
            self._overflows_in_a_row = 0
            if "loss_scale" not in values and not math.isfinite(values["loss"]):
                raise errors.UserError(
                    f"the loss is {values['loss']} at step "
                    f"{values['global_step']}; use a lower --learning_rate, a "
                    "longer warm-up, or --npu_bert_loss_scale=0 with half "
                    "precision"
                )
            return
        self._overflows_in_a_row += batches
        if self._overflows_in_a_row >= MAX_OVERFLOWS_IN_A_ROW:
            raise errors.UserError(
                f"{self._overflows_in_a_row} steps in a row overflowed after "
                f"step {values['global_step']}, the loss scale is down to "
                f"{values['loss_scale']:g}{self._first_overflow(values)}; use "
                "a lower --learning_rate or float32"
            )

    def _first_overflow(self, values):
        if "finite" not in values:
            return ""
        names = [
            name
            for name, finite in zip(self._gradient_names, values["finite"])
            if not finite
        ]
        return (
            "; the first gradient that is not finite is that of "
            f"{(names[0] if names else 'none')}"
        )

    def _write(self, run_context, values, batches, step, now):
        scalars = {
            name: float(value)
            for name, value in values.items()
            if name not in _COUNTERS
        }
        scalars["loss"] = (
            np.mean(self._losses) if self._losses else float("nan")
        )
        self._losses = []
        self._warn_if_stuck(step, scalars["loss"])
        text = [
            f"step={step}",
            f"loss={scalars['loss']:.6f}",
            f"learning_rate={scalars['learning_rate']:.6e}",
        ]
        if self._last is not None and batches > self._last[0]:
            seconds = max(now - self._last[2], 1e-9)
            rate = (batches - self._last[0]) / seconds
            scalars["examples_per_second"] = rate * self._examples_per_step
            scalars["tokens_per_second"] = self._tokens / seconds
            text += [
                f"{name}={scalars[name]:.1f}"
                for name in ("examples_per_second", "tokens_per_second")
            ]
        if "loss_scale" in scalars:
            scalars["overflows"] = batches - step - self._guard.skipped
            text += [
                f"loss_scale={scalars['loss_scale']:g}",
                f"overflows={scalars['overflows']}",
            ]
        text += [
            f"{name}={scalars[name]:.4f}"
            for name in sorted(scalars)
            if name.endswith("accuracy")
        ]
        if "examples_per_second" in scalars:
            left = (self._num_train_steps - step) / rate
            text.append(f"time_left={datetime.timedelta(seconds=round(left))}")
        tf.logging.info("%s", " ".join(text))
        if "masked_lm_accuracy" in scalars:
            scalars["perplexity"] = math.exp(min(scalars["loss"], 700.0))
        if self._weight_norm is not None:
            scalars["weight_norm"] = float(
                run_context.session.run(self._weight_norm)
            )
        add_scalars(self._writer, scalars, step)

    def _warn_if_stuck(self, step, loss):
        """Says once that the loss is still that of guessing.

        Large models do that on some seeds (fairseq issue 1114).
        """
        if self._chance is None or step < STUCK_AFTER_STEPS:
            return
        if loss > 0.9 * self._chance:
            tf.logging.warning(
                "loss %.2f at step %d is that of guessing (%.2f): the model "
                "seems stuck; large models get out with another "
                "--random_seed, a lower --learning_rate or a longer warm-up",
                loss,
                step,
                self._chance,
            )
        self._chance = None
