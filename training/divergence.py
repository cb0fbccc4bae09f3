# SPDX-License-Identifier: Apache-2.0
"""The divergence guard: detects that a training run diverges.

A run diverges when its loss leaves the range that it kept to or is not
finite, when the gradient norm jumps, or when step after step overflows.
training/rollback.py then restores an earlier checkpoint.
"""

import collections
import math
import typing

import numpy as np

from common import errors

MODES = ("off", "stop", "rollback")

# Observations before anything is called unusual.
WARM_UP = 30
# Mean and deviation are those of the last WINDOW usual observations.
WINDOW = 50
# A deviation counts as at least this share of the mean loss: that of a run
# which has settled is tiny.
LEAST_DEVIATION = 0.05
# Least factor of the gradient norm over its (geometric) mean.
NORM_JUMP = 10.0
# A dynamic loss scale falls from 2**15 to 1 in 15 overflows.
OVERFLOW_STREAK = 20
# Batches from the first bad one on that a rollback skips.
SKIPPED = 20


class Observation(typing.NamedTuple):
    """The report of one call of the device, which may be several steps.

    Attributes:
      batch: number of the call's first batch.
      batches: how many it consumed.
      step: global step after it.
      updates: how many of its batches changed the weights.
      loss, gradient_norm: of the last batch.
    """

    batch: int
    batches: int
    step: int
    updates: int
    loss: float
    gradient_norm: float


class Diverged(Exception):
    """Ends a training loop that is to be rolled back.

    Attributes:
      first: number of the first bad batch.
      end: number of the batch to resume at.
    """

    def __init__(self, reason: str, first: int, end: int):
        super().__init__(reason)
        self.first, self.end = first, end


class Guard:
    """Watches the losses and gradient norms of one run.

    Attributes:
      mode: one of MODES.
      skipped: batches that rollbacks skipped so far.
    """

    def __init__(self, mode: str = "off", deviations: float = 6.0):
        """
        Args:
          mode: one of MODES.
          deviations: how far above the running mean a loss may lie.
        """
        self.mode = mode
        self.skipped = 0
        self._deviations = deviations
        self._overflows = 0
        self._losses = collections.deque(maxlen=WINDOW)
        self._log_norms = collections.deque(maxlen=WINDOW)

    def observe(self, seen: Observation) -> None:
        """Takes an observation.

        Raises:
          errors.UserError: it is unusual, mode "stop".
          Diverged: it is unusual, mode "rollback".
        """
        reason = self._judge(seen) if self.mode != "off" else ""
        if not reason:
            return
        end = seen.batch + seen.batches
        first = end - self._overflows if self._overflows else seen.batch
        self._overflows = 0  # what was usual stays known after a rollback
        reason += f" at step {seen.step} (batch {first})"
        if self.mode == "rollback":
            raise Diverged(reason, first, max(end, first + SKIPPED))
        raise errors.UserError(
            f"the run diverged: {reason}; restart from a checkpoint before it "
            "with a lower --learning_rate, or pass --divergence_guard=rollback"
        )

    def _judge(self, seen):
        """The unusual value in an observation, or ""."""
        if not seen.updates:
            self._overflows += seen.batches
            if self._overflows < OVERFLOW_STREAK:
                return ""
            return f"{self._overflows} overflows in a row"
        self._overflows = 0
        for name, value in (
            ("loss", seen.loss),
            ("gradient norm", seen.gradient_norm),
        ):
            if not math.isfinite(value):
                return f"{name} is {value}"
        log_norm = math.log(max(seen.gradient_norm, 1e-30))
        if len(self._losses) >= WARM_UP:
            reason = self._judge_loss(seen.loss) or self._judge_norm(log_norm)
            if reason:
                return reason
        self._losses.append(seen.loss)
        self._log_norms.append(log_norm)
        return ""

    def _judge_loss(self, loss):
        mean, deviation = np.mean(self._losses), np.std(self._losses)
        unit = max(deviation, LEAST_DEVIATION * abs(mean))
        if loss <= mean + self._deviations * unit:
            return ""
        return (
            f"loss {loss:.4f} is far above its mean {mean:.4f} (deviation "
            f"{deviation:.4f})"
        )

    def _judge_norm(self, log_norm):
        mean, deviation = np.mean(self._log_norms), np.std(self._log_norms)
        jump = max(self._deviations * deviation, math.log(NORM_JUMP))
        if log_norm <= mean + jump:
            return ""
        return (
            f"gradient norm {math.exp(log_norm):.4g} is far above its mean "
            f"{math.exp(mean):.4g}"
        )
