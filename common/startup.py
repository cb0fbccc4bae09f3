# SPDX-License-Identifier: Apache-2.0
"""What a command does before it imports TensorFlow, and how signals end it.

Each command imports this module first: importing TensorFlow takes seconds, and
a Python without the packages is the most frequent mistake. An interrupt, a
missing package or too little memory ends the command with one line, and
TensorFlow's own lines are silenced, unless the user has set
TF_CPP_MIN_LOG_LEVEL or Python's warnings. Where a command is imported by
another program, this module does nothing. It imports little, since an interrupt
before it acts has a traceback.
"""

import os
import re
import signal
import sys
import warnings

# The system's words where a library does not fit into memory.
_NO_MEMORY = re.compile("failed to map segment|[Cc]annot allocate memory")


def _is_command(path):
    """Whether a program is one of this project's commands or scripts."""
    folder = os.path.dirname(os.path.realpath(path))
    repository = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return folder in (repository, os.path.join(repository, "scripts"))


def _end(message, code):
    """Ends the process; SystemExit could be caught by what is imported."""
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {message}\n")
    sys.stderr.flush()
    os._exit(code)


def _interrupted(*_):
    _end("interrupted", 128 + signal.SIGINT)


def _report_error(kind, error, traceback):
    if issubclass(kind, MemoryError) or _NO_MEMORY.search(str(error)):
        _end(
            "error: not enough memory to load the packages; raise the limit "
            "(ulimit -v) or end other programs",
            1,
        )
    if not issubclass(kind, ModuleNotFoundError):
        sys.__excepthook__(kind, error, traceback)
        return
    _end(
        f"error: the package {error.name} is missing in {sys.executable}; run "
        "bash scripts/setup.sh and use .venv/bin/python, or first source "
        ".venv/bin/activate",
        1,
    )


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which clean up as Ctrl-C does."""

    def __init__(self, number):
        super().__init__()
        self.number = number


def _interrupt_of(error):
    """The KeyboardInterrupt that an exception is or follows; None without."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _unwind(number, _):
    """Raises an interrupt, unless one is already cleaning up.

    `timeout` and a terminal that closes send two signals.
    """
    if _interrupt_of(sys.exc_info()[1]) is None:
        raise _Ended(number)


def end_interrupted(error: BaseException, advice: str = "") -> None:
    """Ends the process with one line and 128 + the signal's number.

    Args:
      error: a KeyboardInterrupt, or the SystemError that Python makes of one
        in a C function, as in those of TensorFlow 1.15.
      advice: what the user does next, "" for nothing.

    Raises:
      SystemError: the error, where it has another cause.
    """
    interrupt = _interrupt_of(error)
    if interrupt is None:
        raise error
    number = getattr(interrupt, "number", signal.SIGINT)
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    advice = advice and f"; {advice}"
    name = os.path.basename(sys.argv[0])
    try:
        sys.stderr.write(f"{name}: interrupted{by}{advice}\n")
    except OSError:  # the terminal was closed
        pass
    sys.exit(128 + number)


def ignore_signals() -> None:
    """Ignores SIGTERM and SIGHUP while the process exits and cleans up."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def finish() -> None:
    """Lets signals raise interrupts; a command calls it when it has imported.

    A SIGHUP that nohup ignores stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)
    if sys.excepthook is _report_error:
        sys.excepthook = sys.__excepthook__


if sys.stdout is None:  # closed, as by a daemon
    sys.stdout = open(os.devnull, "w")
if _is_command(getattr(sys.modules["__main__"], "__file__", os.sep)):
    sys.excepthook = _report_error
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    # Its libraries log what they are built for, and on a GPU errors that mean
    # nothing; a real one becomes an exception.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not sys.warnoptions:
        # TensorFlow 1.15 under numpy 1.17 or later.
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="tensor(flow|board)"
        )
