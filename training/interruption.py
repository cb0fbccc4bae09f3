# SPDX-License-Identifier: Apache-2.0
"""Signals: training stops after a step, in all processes after the same one."""

import contextlib
import signal
import threading
import typing

import tensorflow.compat.v1 as tf

import device as devices

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interruption:
    """The signal that asked the process to end.

    Attributes:
      number: of the signal, None without one.
    """

    def __init__(self):
        self.number = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as in a shell."""
        return 128 + (self.number or signal.SIGTERM)

    @contextlib.contextmanager
    def watched(self, can_wait: bool) -> typing.Iterator[None]:
        """Within it, signals are noted instead of ending the process.

        A second SIGINT ends it at once. A second SIGTERM, which schedulers
        send, does not. A SIGHUP that nohup ignores stays ignored.

        Args:
          can_wait: False lets a signal end the process at once, even during a
            call of the device.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        handler = self._note if can_wait else signal.SIG_DFL
        before = [
            (number, signal.signal(number, handler))
            for number in SIGNALS
            if number != signal.SIGHUP
            or signal.getsignal(number) is not signal.SIG_IGN
        ]
        try:
            yield
        finally:
            for number, old in before:
                signal.signal(number, old)

    def _note(self, number, frame):
        self.number = self.number or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


class StopHook(tf.train.SessionRunHook):
    """Ends training after the step in which a signal arrived.

    The end of a session saves a checkpoint. Several processes have to end
    after the same step, so each step averages their requests.

    Attributes:
      has_stopped: whether training ended for that reason.
    """

    def __init__(self, interruption: Interruption, device: devices.Device):
        self._interruption = interruption
        self._device = device
        self._request = self._requests = None
        self.has_stopped = False

    def begin(self):
        if self._device.world_size > 1 and self._device.stops_together:
            self._request = tf.placeholder_with_default(0.0, [], "stop_request")
            (self._requests,) = self._device.average([self._request])

    def before_run(self, run_context):
        if self._requests is None:
            return None
        request = 1.0 if self._interruption.number else 0.0
        return tf.train.SessionRunArgs(self._requests, {self._request: request})

    def after_run(self, run_context, run_values):
        if self._device.stops_together and (
            self._interruption.number is not None
            if self._requests is None
            else run_values.results > 0
        ):
            self.has_stopped = True
            run_context.request_stop()
