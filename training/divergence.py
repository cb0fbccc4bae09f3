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
# Usual observations in a row after which a spike has ended ...
CALM = 3
# ... and observations after which the guard no longer waits for its end.
PATIENCE = 20


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


class Spike(typing.NamedTuple):
    """The batches `first` to `end - 1`, in which a run diverged.

    Attributes:
      first: number of the first bad batch.
      end: number after the last bad batch.
      step: global step after the first bad batch.
      reason: the first unusual value.
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
    """Ends a training loop that is to be rolled back."""

    def __init__(self, spike: Spike):
        super().__init__(str(spike))
        self.spike = spike


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
        self._losses = collections.deque(maxlen=WINDOW)
        self._log_norms = collections.deque(maxlen=WINDOW)
        self.reset()

    def reset(self) -> None:
        """Forgets the spike, after a rollback, and keeps what was usual."""
        self._spike = None
        self._overflows = self._observed = self._calm = 0

    def observe(self, seen: Observation) -> str:
        """Takes an observation; returns what is unusual about it, or "".

        A spike is acted upon once its extent is known: the run is calm again,
        or was not for PATIENCE observations, or the loss is not finite.

        Raises:
          errors.UserError: the run diverged, mode "stop".
          Diverged: the run diverged, mode "rollback".
        """
        if self.mode == "off":
            return ""
        reason, is_final = self._judge(seen)
        if reason:
            self._extend_spike(seen, reason)
        elif self._spike is not None and seen.updates:
            self._calm += 1
        if self._spike is not None:
            self._observed += 1
            if is_final or self._calm >= CALM or self._observed >= PATIENCE:
                self._act()
        return reason

    def _act(self):
        if self.mode == "rollback":
            raise Diverged(self._spike)
        raise errors.UserError(
            f"the run diverged: {self._spike}; restart from a checkpoint "
            "before it with a lower --learning_rate, or pass "
            "--divergence_guard=rollback"
        )

    def _extend_spike(self, seen, reason):
        self._calm = 0
        end = seen.batch + seen.batches
        if self._spike is None:
            first = end - self._overflows if self._overflows else seen.batch
            self._spike = Spike(first, end, seen.step, reason)
        self._spike = self._spike._replace(end=end)

    def _judge(self, seen):
        """(what is unusual or "", whether to act without waiting)."""
        if not seen.updates:
            self._overflows += seen.batches
            if self._overflows < OVERFLOW_STREAK:
                return "", False
            return f"{self._overflows} overflows in a row", True
        self._overflows = 0
        if not math.isfinite(seen.loss):
            return f"loss is {seen.loss}", True
        if not math.isfinite(seen.gradient_norm):
            return f"gradient norm is {seen.gradient_norm}", True
        log_norm = math.log(max(seen.gradient_norm, 1e-30))
        reason = self._judge_loss(seen.loss) or self._judge_norm(log_norm)
        if not reason and self._spike is None:
            self._losses.append(seen.loss)
            self._log_norms.append(log_norm)
        return reason, False

    def _judge_loss(self, loss):
        if len(self._losses) < WARM_UP:
            return ""
        mean, deviation = np.mean(self._losses), np.std(self._losses)
        # A spike ends at half the distance at which it begins.
        allowed = self._deviations * (0.5 if self._spike is not None else 1.0)
        if loss <= mean + allowed * max(deviation, LEAST_DEVIATION * abs(mean)):
            return ""
        return (
            f"loss {loss:.4f} is far above its mean {mean:.4f} (deviation "
            f"{deviation:.4f})"
        )

    def _judge_norm(self, log_norm):
        if len(self._log_norms) < WARM_UP:
            return ""
        mean, deviation = np.mean(self._log_norms), np.std(self._log_norms)
        if log_norm <= mean + max(
            self._deviations * deviation, math.log(NORM_JUMP)
        ):
            return ""
        return (
            f"gradient norm {math.exp(log_norm):.4g} is far above its mean "
            f"{math.exp(mean):.4g}"
        )
