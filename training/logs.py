# SPDX-License-Identifier: Apache-2.0
"""Log format, and the filter for TensorFlow's routine messages."""

import contextlib
import datetime
import logging
import re
import threading
import time
import typing

import tqdm
from absl import logging as absl_logging

from common import log_format

# The filter below hides nothing that another package logs.
_TENSORFLOW_FILE = re.compile(r".*/tensorflow(_core|_estimator)?/python/")
# Messages of every start, deprecation warnings, and errors that the command
# reports itself.
_ROUTINE = re.compile(
    r".*eprecat|Estimator's model_fn|Using config|_TPUContext|"
    r"eval_on_tpu ignored|Done calling|"
    r"Running local_init_op|Done running|Graph was finalized|Create Check|"
    r"Skipping training since|.*_loop marked as finished|Inference Time|"
    r"Loss for final step|Saving 'checkpoint_path'|Saving dict|"
    r"Calling checkpoint listeners|Calling model_fn|Running (train|eval|"
    r"infer) on CPU|Error recorded from|Reraising captured error"
)


def set_up_logging(run: typing.Any) -> None:
    """Logs this project's INFO lines and TensorFlow's warnings, with a time.

    Args:
      run: run_config.RunConfig, whose module needs TensorFlow.

    --verbose_logging logs everything.
    """
    level = logging.DEBUG if run.verbose_logging else logging.INFO
    logging.getLogger("absl").setLevel(level)
    _set_up_logger(level, filters=not run.verbose_logging)


def set_up_warnings(*, with_tensorflow: bool = True) -> None:
    """Logs warnings only, for commands whose output is an answer."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    if with_tensorflow:
        _set_up_logger(logging.WARNING, filters=True)


def _set_up_logger(level, filters):
    import tensorflow.compat.v1 as tf

    logger = tf.get_logger()
    logger.setLevel(level)
    # absl's handler would log each line again; where it was there before
    # TensorFlow was imported, it is the only one.
    logger.propagate = not logger.handlers
    for handler in logger.handlers:
        handler.setFormatter(log_format.Formatter())
    if filters:
        for target in [logger, *logger.handlers]:
            target.addFilter(_is_shown)


def progress_bar(**options: typing.Any) -> tqdm.tqdm:
    """A tqdm bar where standard error is a terminal; log lines clear it."""
    import tensorflow.compat.v1 as tf

    bar = tqdm.tqdm(dynamic_ncols=True, **{"disable": None, **options})
    for handler in [absl_logging.get_absl_handler(), *tf.get_logger().handlers]:
        handler.addFilter(lambda record: bar.clear() is None)
    return bar


def counted(
    items: typing.Iterable[typing.Any],
    total: int,
    what: str,
    unit: str,
    *,
    is_shown: bool = True,
    seconds: float = 10.0,
) -> typing.Iterator[typing.Any]:
    """Yields the items, with the time that is left.

    That is a bar where standard error is a terminal, else a log line.

    Args:
      items: what is counted.
      total: how many they are.
      what: is done with them, for the bar and the lines.
      unit: name of an item.
      is_shown: False shows nothing, as in processes other than the first.
      seconds: between two lines.
    """
    bar = tqdm.tqdm(
        items,
        total=total,
        desc=what,
        unit=unit,
        delay=2,
        mininterval=2.0,
        leave=False,
        disable=None if is_shown else True,
    )
    start = shown = time.monotonic()
    for count, item in enumerate(bar, 1):
        yield item
        now = time.monotonic()
        if is_shown and bar.disable and now - shown >= seconds:
            shown = now
            left = (now - start) / count * (total - count)
            absl_logging.info(
                "%s: %d of %d, time_left=%s",
                what,
                count,
                total,
                datetime.timedelta(seconds=round(left)),
            )


@contextlib.contextmanager
def waiting(
    what: str, seconds: float = 10.0
) -> typing.Iterator[threading.Event]:
    """Logs every so many seconds that something takes its time.

    Args:
      what: its name, for the lines.
      seconds: between two lines.

    Yields:
      The event that ends the lines, as the end of the context does.
    """
    done = threading.Event()
    start = time.monotonic()

    def log():
        while not done.wait(seconds):
            absl_logging.info(
                "%s: %.0f s so far", what, time.monotonic() - start
            )

    threading.Thread(target=log, daemon=True).start()
    try:
        yield done
    finally:
        done.set()


def _is_shown(record):
    return not (
        _TENSORFLOW_FILE.match(record.pathname)
        and _ROUTINE.match(record.getMessage())
    )
