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
_REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Paths of this project's code; an environment may lie within its folder.
_OWN_CODE = re.compile(re.escape(_REPOSITORY) + "(?!.*-packages)")
# The first signal that asked the command to end.
_received = None


def _is_command(path):
    """Whether a program is one of this project's commands or scripts."""
    folder = os.path.dirname(os.path.realpath(path))
    repository = os.path.realpath(_REPOSITORY)
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


def _interrupt_of(error):
    """The KeyboardInterrupt that an exception is or follows; None without."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _unwind(number, frame):
    """Raises an interrupt in this project's code, unless one is cleaning up.

    Libraries are not made for interrupts: C functions of TensorFlow replace or
    drop them, and those of TensorFlow 1.15 crash. They end at the next line of
    this project's code, or after a second, as where one was dropped.
    `timeout` and a terminal that closes send two signals; a second Ctrl-C ends
    the cleaning up.
    """
    global _received
    _received = _received or number
    if number != signal.SIGINT and _interrupt_of(sys.exc_info()[1]):
        return
    signal.signal(signal.SIGALRM, _unwind)
    signal.alarm(1)
    if number == signal.SIGALRM or _is_own(frame):
        raise KeyboardInterrupt
    sys.settrace(_raise_in_own_code)
    while frame:
        frame.f_trace = _raise_in_own_code
        frame = frame.f_back


def _is_own(frame):
    return _OWN_CODE.match(frame.f_code.co_filename)


def _raise_in_own_code(frame, event, _):
    """A trace function, see sys.settrace."""
    if _is_own(frame):
        sys.settrace(None)
        raise KeyboardInterrupt


def end_interrupted(error: BaseException, advice: str = "") -> None:
    """Ends the process with one line and 128 + the signal's number.

    Args:
      error: a KeyboardInterrupt, or what a C function has made of one: those
        of TensorFlow 1.15 a SystemError, those of 2.15 an AttributeError.
      advice: what the user does next, "" for nothing.

    Raises:
      Exception: the error, where no signal was received.
    """
    if _received is None and _interrupt_of(error) is None:
        raise error
    number = _received or signal.SIGINT
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
    if _received is not None:
        signal.alarm(0)


def finish() -> None:
    """Lets signals raise interrupts; a command calls it when it has imported.

    A SIGHUP that nohup ignores stays ignored.
    """
    initial = (signal.SIG_DFL, signal.default_int_handler, _interrupted)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in initial:
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
