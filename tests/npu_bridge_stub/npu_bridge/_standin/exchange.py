# SPDX-License-Identifier: Apache-2.0
"""Collectives between processes of one machine, over loopback TCP.

Rank 0 listens on a free port and leaves its number in a file of the temporary
directory that is named after the job. Every rank sends its arrays there,
under a key that is the same in all of them, and gets the result back; sums are
made in the order of the ranks.
"""
import atexit
import multiprocessing.connection
import os
import tempfile
import threading
import time

import numpy as np

_REDUCTIONS = {"sum": np.add, "prod": np.multiply, "max": np.maximum,
               "min": np.minimum}


def _seconds(name, default):
    return float(os.environ.get(name, default))


def combine(kind, option, arrays_by_rank):
    """The result that every rank gets.

    Args:
      kind: "allreduce", "allgather" or "broadcast".
      option: the reduction, None or the root rank.
      arrays_by_rank: a list of arrays for each rank, in order.

    Returns:
      list of arrays.

    Raises:
      ValueError: shapes or dtypes differ between ranks.
    """
    for rank, arrays in enumerate(arrays_by_rank):
        forms = [[(a.shape, str(a.dtype)) for a in ranks_arrays]
                 for ranks_arrays in (arrays, arrays_by_rank[0])]
        if forms[0] != forms[1]:
            raise ValueError("rank %d sent %s, rank 0 %s" %
                             (rank, forms[0], forms[1]))
    if kind == "broadcast":
        return arrays_by_rank[option]
    if kind == "allgather":
        return [np.concatenate(same) for same in zip(*arrays_by_rank)]
    results = [a.copy() for a in arrays_by_rank[0]]
    for arrays in arrays_by_rank[1:]:
        results = [_REDUCTIONS[option](total, a)
                   for total, a in zip(results, arrays)]
    return results


class Meeting:
    """Where the ranks' arrays come together; lives in rank 0."""

    def __init__(self, size, timeout):
        self._size = size
        self._timeout = timeout
        self._changed = threading.Condition()
        self._arrived = {}  # key: {rank: (kind, option, arrays)}
        self._results = {}  # key: [("ok", arrays) or ("error", text), unread]
        self._gone = set()

    def leave(self, rank):
        """A rank's process has ended."""
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()

    def meet(self, rank, key, kind, option, arrays):
        """("ok", arrays) once all ranks are here, or ("error", text)."""
        with self._changed:
            arrived = self._arrived.setdefault(key, {})
            arrived[rank] = (kind, option, arrays)
            if len(arrived) == self._size:
                self._results[key] = [self._combined(arrived), self._size]
                del self._arrived[key]
                self._changed.notify_all()

            def missing():
                return sorted(set(range(self._size)) - set(arrived))

            over = self._changed.wait_for(
                lambda: key in self._results or set(missing()) & self._gone,
                self._timeout)
            if key in self._results:
                return self._read(key)
            why = "whose process has ended" if over else (
                "which did not come within %g s" % self._timeout)
            return "error", "%s %r waited for rank %s, %s" % (
                kind, key, ", ".join(map(str, missing())), why)

    def _combined(self, arrived):
        by_rank = [arrived[rank] for rank in range(self._size)]
        if len({(kind, option) for kind, option, _ in by_rank}) > 1:
            return "error", "ranks disagree: %s" % [b[:2] for b in by_rank]
        kind, option, _ = by_rank[0]
        try:
            return "ok", combine(kind, option, [b[2] for b in by_rank])
        except ValueError as error:
            return "error", "%s: %s" % (kind, error)

    def _read(self, key):
        entry = self._results[key]
        entry[1] -= 1
        if not entry[1]:
            del self._results[key]
        return entry[0]


class Server:
    """Rank 0's listening end."""

    def __init__(self, rank):
        """
        Args:
          rank: ranks.Rank.
        """
        self.meeting = Meeting(rank.size, _seconds("HCCL_EXEC_TIMEOUT", 120))
        self._rank = rank
        self._greeted = set()
        self._unsent = 0
        self._changed = threading.Condition()
        self._listener = multiprocessing.connection.Listener(
            ("127.0.0.1", 0), backlog=128, authkey=rank.job.encode())
        path = port_file(rank.job)
        with open(path + ".new", "w") as file:
            file.write("%d" % self._listener.address[1])
        os.replace(path + ".new", path)
        atexit.register(self._close, path)
        threading.Thread(target=self._accept, daemon=True).start()

    def _close(self, path):
        """Waits until the other ranks have their last results."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unsent, 10)
        os.remove(path)

    def _accept(self):
        while True:
            try:
                connection = self._listener.accept()
            except (multiprocessing.AuthenticationError, EOFError, OSError):
                continue
            threading.Thread(target=self._serve, args=(connection,),
                             daemon=True).start()

    def _serve(self, connection):
        greeted = None
        try:
            while True:
                message = connection.recv()
                if message[0] == "hello":
                    greeted = self._greet(message)
                    connection.send("welcome" if greeted else "busy")
                else:
                    self._answer(connection, message)
        except (EOFError, OSError):
            if greeted:
                self.meeting.leave(greeted)

    def _greet(self, message):
        """The rank, if it is one of this job that was not here before."""
        _, rank, size = message
        with self._changed:
            if rank in self._greeted or size != self._rank.size:
                return None
            self._greeted.add(rank)
            return rank

    def _answer(self, connection, message):
        with self._changed:
            self._unsent += 1
        try:
            connection.send(self.meeting.meet(*message))
        finally:
            with self._changed:
                self._unsent -= 1
                self._changed.notify_all()


def port_file(job):
    """The file that tells a job's ranks where rank 0 listens."""
    return os.path.join(tempfile.gettempdir(), "npu_bridge_stub_%s" % job)


class Exchange:
    """This process's end of the collectives."""

    def __init__(self, rank):
        """Connects; waits HCCL_CONNECT_TIMEOUT seconds (120) for rank 0.

        Args:
          rank: ranks.Rank.
        """
        self._rank = rank
        self._lock = threading.Lock()
        self._calls = {}
        self._local = threading.local()
        self._server = Server(rank) if rank.rank == 0 else None
        # It stays open for as long as the process lives.
        self._alive = None if self._server else self._enter()

    def _enter(self):
        deadline = time.time() + _seconds("HCCL_CONNECT_TIMEOUT", 120)
        while True:
            try:
                connection = self._connect()
                connection.send(("hello", self._rank.rank, self._rank.size))
                if connection.recv() == "welcome":
                    return connection
            except (multiprocessing.AuthenticationError, EOFError, OSError,
                    ValueError):
                pass
            if time.time() > deadline:
                raise RuntimeError("rank %d found no rank 0 of its job" %
                                   self._rank.rank)
            time.sleep(0.05)

    def _connect(self):
        with open(port_file(self._rank.job)) as file:
            port = int(file.read())
        return multiprocessing.connection.Client(
            ("127.0.0.1", port), authkey=self._rank.job.encode())

    def run(self, name, kind, option, arrays):
        """One collective; every rank calls it with the same name and kind.

        Raises:
          RuntimeError: a rank is missing or sent something else.
        """
        with self._lock:
            count = self._calls[name] = self._calls.get(name, 0) + 1
        message = (self._rank.rank, "%s#%d" % (name, count), kind, option,
                   arrays)
        if self._server:
            state, value = self._server.meeting.meet(*message)
        else:
            state, value = self._ask(message)
        if state == "error":
            raise RuntimeError("rank %d: %s" % (self._rank.rank, value))
        return value

    def _ask(self, message):
        # One connection a thread: collectives may wait for each other.
        try:
            if not hasattr(self._local, "connection"):
                self._local.connection = self._connect()
            self._local.connection.send(message)
            return self._local.connection.recv()
        except (EOFError, OSError) as error:
            return "error", "rank 0 is gone (%s)" % (error or "closed")
