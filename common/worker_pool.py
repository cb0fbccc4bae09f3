# SPDX-License-Identifier: Apache-2.0
"""The results of a function over many items, from several processes, in order.

def create(factor):               # runs once in each process
    return lambda item: item * factor

list(map_ordered(range(3), create, (10,), num_workers=2))  # [0, 10, 20]
"""

import collections
import concurrent.futures
import contextlib
import os
import signal
import threading
import time
import typing
from concurrent.futures import process

from common import errors

# Pending items per worker: enough to keep it busy, and a bound for memory.
_ITEMS_PER_WORKER = 2
_WATCH_SECONDS = 0.5
# Of an executor, and one to spare.
_THREADS = 3
# A larger value is certainly a typo and would exhaust the machine.
MAX_WORKERS = 1024

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_function = None  # of a worker, what `create` returned


class WorkerError(errors.UserError):
    """A worker process exited or was killed."""


def available_cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ordered(
    items: typing.Iterable[typing.Any],
    create: typing.Callable[..., typing.Callable[[typing.Any], typing.Any]],
    arguments: typing.Tuple[typing.Any, ...],
    num_workers: int,
) -> typing.Iterator[typing.Any]:
    """Yields create(*arguments)(item) for each item, in their order.

    Items are taken from their iterator only as results are asked for. Close
    the generator to end the workers early.

    Args:
      items: an iterator of picklable items.
      create: a function of a module, called once in each worker.
      arguments: of `create`; picklable.
      num_workers: processes; 1 does all work in this process.

    Raises:
      WorkerError: a worker exited.
      MemoryError: its threads do not fit.
      Exception: any exception of the function for an item.
    """
    if num_workers == 1:
        yield from map(create(*arguments), items)
        return
    _check_threads()
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, initializer=_initialize, initargs=(create, arguments)
    )
    pending = collections.deque()
    try:
        for item in items:
            with _held_signals():  # the first items start processes
                pending.append(executor.submit(_call, item))
            if len(pending) > _ITEMS_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except process.BrokenProcessPool:
        raise WorkerError(
            "a worker process was killed, perhaps because memory ran out; run "
            "the same command again, with a smaller --num_workers than "
            f"{num_workers} if it was memory"
        ) from None
    finally:
        for future in pending:
            future.cancel()
        executor.shutdown()


def _check_threads():
    """Raises MemoryError where the executor would wait for its threads forever.

    It has two; the stacks of the threads here are used again.
    """
    ends = threading.Event()
    try:
        for _ in range(_THREADS):
            threading.Thread(target=ends.wait, daemon=True).start()
    except RuntimeError as error:
        raise MemoryError(str(error)) from None
    finally:
        ends.set()


@contextlib.contextmanager
def _held_signals():
    """Keeps signals until a process was forked, where Python ignores errors.

    A signal mask holds for one thread only; any other would take the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread, which is not forking
        return
    arrived = []
    previous = [
        (number, signal.signal(number, lambda n, _: arrived.append(n)))
        for number in _SIGNALS
    ]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
        for number in arrived:
            os.kill(os.getpid(), number)


def _initialize(create, arguments):
    """Prepares a worker: it exits with its parent, not by Ctrl-C."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    _function = create(*arguments)


def _watch(parent):
    """Ends this process when its parent has exited."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _call(item):
    return _function(item)
