# SPDX-License-Identifier: Apache-2.0
"""Damaged files into every reader: only documented errors may come out.

    python tests/fuzz.py --inputs=10000
    python tests/fuzz.py --inputs=10000 --reader=manifest --seed=7

Runs in one process; prints a line for each reader. An input that raises
anything but errors.UserError or OSError, takes more than 2 seconds of CPU
time or 1 GB of memory is kept in --failures, and the exit code is 1. With
--atheris (pip install atheris; Python 3.11) the inputs come from that
coverage-guided fuzzer instead.
"""

import argparse
import collections
import contextlib
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types

from common import errors
from helpers import fuzz_readers
from helpers.paths import REPOSITORY

SECONDS = 2
MEMORY_BYTES = 1 << 30
# Scripts turn them into one line.
DOCUMENTED = (errors.UserError, OSError)
MAX_MESSAGE = 2000

Result = collections.namedtuple(
    "Result", "inputs rejected slowest_ms peak_mb failures"
)


class TooSlow(BaseException):
    """Not an Exception, so that no reader handles it as damage."""


def _too_slow(*_):
    raise TooSlow(f"more than {SECONDS} s of CPU time")


@contextlib.contextmanager
def limits():
    """Limits the memory of a reader, and its CPU time once armed."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    handler = signal.signal(signal.SIGPROF, _too_slow)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def verdict(read, data):
    """(whether the input was rejected, what is wrong with that or "")."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        read(data)
        return False, ""
    except DOCUMENTED as error:
        # Scripts shorten an OSError themselves.
        too_long = (
            isinstance(error, errors.UserError)
            and len(str(error)) > MAX_MESSAGE
        )
        return True, (
            f"a message of {len(str(error))} characters: {str(error)[:200]}"
        ) if too_long else ""
    except (Exception, TooSlow):
        return False, traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _kind(text):
    """The key of a failure's cause: error and last frame."""
    places = re.findall(r"^  File .*$", text, re.MULTILINE)
    return text.strip().splitlines()[-1].split(":")[0], places[-1:]


def run(reader, inputs, seed):
    """Feeds valid inputs to a reader, then mutated ones.

    Args:
      reader: a fuzz_readers.Reader.
      inputs: the number of mutated ones.
      seed: the seed of the mutations.

    Returns:
      A Result; failures are [(number of the input, its bytes, text)], the
      first of each kind.
    """
    for data in reader.sound:
        reader.read(data)
    rejected, slowest, failures, peak = 0, 0.0, {}, _peak_mb()
    with limits():
        for number in range(inputs):
            data = reader.make(random.Random(f"{seed} {number}"))
            start = time.process_time()
            is_rejected, text = verdict(reader.read, data)
            slowest = max(slowest, time.process_time() - start)
            rejected += is_rejected
            if text:
                failures.setdefault(str(_kind(text)), (number, data, text))
    return Result(
        inputs,
        rejected,
        1000 * slowest,
        max(0.0, _peak_mb() - peak),
        list(failures.values()),
    )


def _keep(directory, name, failures):
    directory.mkdir(parents=True, exist_ok=True)
    for number, data, text in failures:
        path = directory / (f"{name}-{number}")
        path.write_bytes(data)
        print(f"{path}:\n{text}")


def run_atheris(reader, inputs, seeds):
    """Lets atheris choose the inputs; ends the process."""
    import atheris

    # The branches of TensorFlow and numpy would hide those of the suite.
    for module in list(sys.modules.values()):
        if str(REPOSITORY) == str(
            pathlib.Path(getattr(module, "__file__", None) or "/").parent
        ):
            _instrument(atheris, module)

    def feed(data):
        _, text = verdict(reader.read, data)
        if text:
            raise RuntimeError(text)

    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={inputs}",
            "-max_len=65536",
            "-rss_limit_mb=4096",
            "-timeout=20",
            str(seeds),
        ],
        feed,
    )
    atheris.Fuzz()


def _instrument(atheris, module):
    for holder in [module] + [
        value for value in vars(module).values() if isinstance(value, type)
    ]:
        for value in list(vars(holder).values()):
            if (
                isinstance(value, types.FunctionType)
                and value.__module__ == module.__name__
            ):
                atheris.instrument_func(value)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=10000, help="for each reader"
    )
    parser.add_argument(
        "--reader", choices=sorted(fuzz_readers.READERS), help="this one alone"
    )
    parser.add_argument("--seed", default="1")
    parser.add_argument(
        "--failures",
        type=pathlib.Path,
        default=pathlib.Path(tempfile.gettempdir()) / "fuzz_failures",
        help="directory for bad inputs",
    )
    parser.add_argument("--atheris", action="store_true", help="needs --reader")
    options = parser.parse_args(arguments)
    if options.atheris and not options.reader:
        parser.error("--atheris needs --reader")
    return options


@contextlib.contextmanager
def scratch():
    """A temporary directory, in memory where possible, as that is faster."""
    memory = pathlib.Path("/dev/shm")
    directory = tempfile.mkdtemp(dir=str(memory) if memory.is_dir() else None)
    try:
        yield pathlib.Path(directory)
    finally:
        shutil.rmtree(directory)


def main(arguments):
    options = parse(arguments)
    failed = False
    for name in (
        [options.reader] if options.reader else sorted(fuzz_readers.READERS)
    ):
        with scratch() as directory:
            reader = fuzz_readers.READERS[name](directory)
            if options.atheris:
                seeds = directory / "seeds"
                seeds.mkdir()
                for number in range(50):
                    (seeds / str(number)).write_bytes(
                        reader.make(random.Random(number))
                    )
                run_atheris(reader, options.inputs, seeds)
            result = run(reader, options.inputs, options.seed)
        print(
            f"{name} inputs={result.inputs} rejected={result.rejected} "
            f"slowest_ms={result.slowest_ms:.0f} peak_mb={result.peak_mb:.0f} "
            f"failures={len(result.failures)}",
            flush=True,
        )
        _keep(options.failures, name, result.failures)
        failed |= bool(result.failures) or result.peak_mb > 1024
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
