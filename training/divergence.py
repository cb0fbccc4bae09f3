# SPDX-License-Identifier: Apache-2.0
"""Notices that a training run diverges, and what is to be done about it.

A run diverges when its loss leaves the band it kept to, is no number, when
the gradients' norm jumps, or when step after step overflows. Restoring an
earlier checkpoint and passing over the batches in which it began mostly mends
that. No TensorFlow in here: the numbers come from the progress hook.

Source: Chowdhery et al. 2022 (arXiv:2204.02311), section 5.1: "we re-started
training from a checkpoint roughly 100 steps before the spike started, and
skipped roughly 200-500 data batches, which cover the batches that were seen
before and during the spike".
"""

import collections
import json
import math
import os
import typing

from common import errors, files

MODES = ("off", "stop", "rollback")

# Observations before anything is called unusual.
WARM_UP = 30
# The running mean and deviation are those of the last so many.
WINDOW = 50
# A deviation counts as at least this share of the mean loss: that of a run
# which has settled is tiny.
LEAST_DEVIATION = 0.05
# Least factor of the gradients' norm over its (geometric) mean.
NORM_JUMP = 10.0
# A dynamic loss scale falls from 2**15 to 1 in 15 overflows.
OVERFLOW_STREAK = 20
# Usual observations in a row after which trouble has passed ...
CALM = 3
# ... and observations after which the guard waits no longer for that.
PATIENCE = 20

_STATE_FILE = "rollbacks.json"


class Observation(typing.NamedTuple):
    """What one call of the device tells.

    Attributes:
      batch: number of the call's first batch.
      batches: how many it consumed.
      step: global step after it.
      updates: how many of its batches changed the weights.
      loss: the last batch's.
      gradient_norm: likewise.
    """

    batch: int
    batches: int
    step: int
    updates: int
    loss: float
    gradient_norm: float


class Trouble(typing.NamedTuple):
    """A stretch of batches in which a run went wrong.

    Attributes:
      first: number of the first bad batch.
      end: number after the last bad batch.
      step: global step at its beginning.
      reason: what was seen there.
    """

    first: int
    end: int
    step: int
    reason: str

    def __str__(self):
        return (
            f"{self.reason} at step {self.step} (batches {self.first} to "
            f"{self.end - 1})"
        )


class Diverged(Exception):
    """Ends a training loop whose trouble is to be rolled back."""

    def __init__(self, trouble):
        super().__init__(str(trouble))
        self.trouble = trouble


class _Running:
    """Mean and deviation of the last WINDOW values."""

    def __init__(self):
        self._values = collections.deque(maxlen=WINDOW)
        self.mean = self.deviation = 0.0

    def add(self, value):
        self._values.append(value)
        self.mean = math.fsum(self._values) / len(self._values)
        self.deviation = math.sqrt(
            math.fsum((v - self.mean) ** 2 for v in self._values)
            / len(self._values)
        )

    @property
    def is_warm(self):
        return len(self._values) >= WARM_UP


class Detector:
    """Tells usual observations from those of a run that diverges.

    `observe` everything; `trouble` is there once its extent is known: the run
    is calm again, it was not for PATIENCE observations, or no number is left.
    """

    def __init__(self, deviations=6.0):
        """
        Args:
          deviations: how far above the running mean a loss may lie.
        """
        self._deviations = deviations
        self._loss = _Running()
        self._log_norm = _Running()
        self._overflows = 0
        self._first_overflow = None  # (batch, step)
        self._open = None  # Trouble so far
        self._observed = 0  # since it began
        self._calm = 0
        self.trouble = None

    def observe(self, seen):
        """Takes in an Observation; says what is wrong with it, or ""."""
        reason, is_final = self._judge(seen)
        if reason:
            self._note(seen, reason)
        elif self._open is not None and seen.updates:
            self._calm += 1
        if self._open is not None:
            self._observed += 1
            if is_final or self._calm >= CALM or self._observed >= PATIENCE:
                self.trouble = self._open
        return reason

    def forget(self):
        """After a rollback: what was usual stays, the trouble goes."""
        self.trouble = self._open = self._first_overflow = None
        self._observed = self._calm = self._overflows = 0

    def _note(self, seen, reason):
        self._calm = 0
        end = seen.batch + seen.batches
        if self._open is not None:
            self._open = self._open._replace(end=end)
            return
        first, step = self._first_overflow or (seen.batch, seen.step)
        self._open = Trouble(first, end, step, reason)

    def _judge(self, seen):
        """(what is wrong or "", whether there is nothing more to wait for)."""
        if not seen.updates:
            return self._judge_overflow(seen)
        self._overflows, self._first_overflow = 0, None
        if not math.isfinite(seen.loss):
            return f"loss is {seen.loss}", True
        if not math.isfinite(seen.gradient_norm):
            return f"gradient norm is {seen.gradient_norm}", True
        log_norm = math.log(max(seen.gradient_norm, 1e-30))
        reason = self._judge_loss(seen.loss) or self._judge_norm(log_norm)
        if not reason and self._open is None:
            self._loss.add(seen.loss)
            self._log_norm.add(log_norm)
        return reason, False

    def _judge_overflow(self, seen):
        self._first_overflow = self._first_overflow or (seen.batch, seen.step)
        self._overflows += seen.batches
        if self._overflows < OVERFLOW_STREAK:
            return "", False
        return f"{self._overflows} overflows in a row", True

    def _judge_loss(self, loss):
        mean = self._loss.mean
        unit = max(self._loss.deviation, LEAST_DEVIATION * abs(mean))
        # Calm again is less than just not alarming.
        allowed = self._deviations * (0.5 if self._open is not None else 1.0)
        if not self._loss.is_warm or loss <= mean + allowed * unit:
            return ""
        return (
            f"loss {loss:.4f} is far above its mean {mean:.4f} (deviation "
            f"{self._loss.deviation:.4f})"
        )

    def _judge_norm(self, log_norm):
        mean = self._log_norm.mean
        jump = max(
            self._deviations * self._log_norm.deviation, math.log(NORM_JUMP)
        )
        if not self._log_norm.is_warm or log_norm <= mean + jump:
            return ""
        return (
            f"gradient norm {math.exp(log_norm):.4g} is far above its mean "
            f"{math.exp(mean):.4g}"
        )


class Skips:
    """Which batches rollbacks passed over: output_dir/rollbacks.json.

    A jump (start, end) says that a run at batch `start`, where a checkpoint
    was written, goes on at batch `end`. It is kept outside of the checkpoint,
    so that a run killed right after a rollback does not run into the same
    batches again.
    """

    def __init__(self, directory):
        """
        Raises:
          errors.UserError: the file there is damaged.
        """
        self._path = os.path.join(directory, _STATE_FILE)
        self.rollbacks = 0
        self._jumps = []
        if not os.path.exists(self._path):
            return
        try:
            with open(self._path, encoding="utf-8") as stream:
                state = files.loads(stream.read(1 << 20))
            self.rollbacks = int(state["rollbacks"])
            self._jumps = [
                (int(start), int(end)) for start, end in state["skipped"]
            ]
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise errors.UserError(
                f"{self._path} does not say which batches were skipped "
                f'({error}); write {{"rollbacks": 0, "skipped": []}} into '
                "it to forget them"
            ) from error

    def resume(self, seen):
        """(batch at which to go on, batches passed over until there).

        Args:
          seen: batches_seen of the checkpoint to go on from.
        """
        jumps = dict(self._jumps)
        return (
            jumps.get(seen, seen),
            sum(end - start for start, end in self._jumps if start <= seen),
        )

    def is_used(self, seen):
        """Whether a rollback went to a checkpoint with this batches_seen."""
        return seen in dict(self._jumps)

    def add(self, start, end):
        """Notes a rollback; jumps that lie behind it are void."""
        self.rollbacks += 1
        self._jumps = [jump for jump in self._jumps if jump[0] < start]
        self._jumps.append((start, end))
        text = json.dumps({"rollbacks": self.rollbacks, "skipped": self._jumps})
        files.write_bytes(self._path, (text + "\n").encode("utf-8"))


def rollback_target(checkpoints, trouble, skips):
    """The checkpoint to go back to.

    One that was gone back to before, and from which trouble came again before
    a newer one was written, is not trusted again while there is an older one.

    Args:
      checkpoints: [(prefix, batches_seen)], oldest first.
      trouble: Trouble.
      skips: Skips.

    Returns:
      The place in `checkpoints`.

    Raises:
      errors.UserError: all of them are newer than the trouble.
    """
    places = [
        place
        for place, (_, seen) in enumerate(checkpoints)
        if seen <= trouble.first
    ]
    if not places:
        raise errors.UserError(
            f"{str(trouble)}, and every checkpoint left is newer; keep more "
            "with --keep_checkpoint_max, or start anew with a lower "
            "--learning_rate"
        )
    last = places[-1]
    return last - 1 if last and skips.is_used(checkpoints[last][1]) else last


class Guard:
    """The detector of a run, and what was decided for it.

    Attributes:
      mode: one of MODES.
      skipped: batches that rollbacks passed over up to here.
    """

    def __init__(self, mode="off", max_rollbacks=3, deviations=6.0):
        self.mode = mode
        self.max_rollbacks = max_rollbacks
        self.detector = Detector(deviations)
        self.skipped = 0

    def observe(self, seen):
        """Takes in an Observation; gives what is to be logged, or "".

        Raises:
          errors.UserError: the run diverged and is to stop.
          Diverged: the run diverged and is to be rolled back.
        """
        if self.mode == "off":
            return ""
        reason = self.detector.observe(seen)
        trouble = self.detector.trouble
        if trouble is None:
            return reason
        if self.mode == "rollback":
            raise Diverged(trouble)
        raise errors.UserError(
            f"the run diverged: {str(trouble)}; go back to a checkpoint from "
            "before it with a lower --learning_rate, or let "
            "--divergence_guard=rollback do so"
        )


def new_guard(run):
    """The Guard that the flags ask for."""
    return Guard(
        run.divergence_guard,
        run.divergence_max_rollbacks,
        run.divergence_deviations,
    )
