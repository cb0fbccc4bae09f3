# SPDX-License-Identifier: Apache-2.0
"""Collectives between processes of one machine, over loopback TCP.

Rank 0 listens on a free port and leaves its number in a file of the temporary
directory that is named after the job. Every other rank has one connection to
it, sends its arrays under a key that is the same in all ranks, and gets the
result back; sums are made in the order of the ranks.
"""

import atexit
import multiprocessing.connection
import os
import tempfile
import threading
import time

import numpy as np

_REDUCTIONS = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}
_ENDED = ("error", "rank 0's process has ended")


def _seconds(name, default):
    return float(os.environ.get(name, default))


def combine(kind, option, arrays_by_rank):
    """The result that every rank gets.

    Args:
      kind: "allreduce" or "broadcast".
      option: the reduction or the root rank.
      arrays_by_rank: a list of arrays for each rank, in order.

    Returns:
      list of arrays.

    Raises:
      ValueError: shapes or dtypes differ between ranks.
    """
    for rank, arrays in enumerate(arrays_by_rank):
        forms = [
            [(a.shape, str(a.dtype)) for a in ranks_arrays]
            for ranks_arrays in (arrays, arrays_by_rank[0])
        ]
        if forms[0] != forms[1]:
            raise ValueError(f"rank {rank} sent {forms[0]}, rank 0 {forms[1]}")
    if kind == "broadcast":
        return arrays_by_rank[option]
    results = [a.copy() for a in arrays_by_rank[0]]
    for arrays in arrays_by_rank[1:]:
        results = [
            _REDUCTIONS[option](total, a) for total, a in zip(results, arrays)
        ]
    return results


class Meeting:
    """Where the ranks' arrays come together; lives in rank 0."""

    def __init__(self, size, timeout, deliver):
        """
        Args:
          size: how many ranks there are.
          timeout: seconds that the first rank waits for the last.
          deliver: function of (rank, key, answer), where the answer is
            ("ok", arrays) or ("error", text).
        """
        self._size = size
        self._timeout = timeout
        self._deliver = deliver
        self._lock = threading.Lock()
        self._arrived = {}  # key: (time, {rank: (kind, option, arrays)})
        self._gone = set()

    def arrive(self, rank, key, kind, option, arrays):
        """A rank's part; the last one brings everybody the answer."""
        with self._lock:
            _, parts = self._arrived.setdefault(key, (time.time(), {}))
            parts[rank] = (kind, option, arrays)
            complete = len(parts) == self._size
            if complete:
                del self._arrived[key]
        if complete:
            self._answer(key, parts, self._combined(parts))
        else:
            self._fail(
                lambda since, missing: missing & self._gone,
                "whose process has ended",
            )

    def leave(self, rank):
        """A rank's process has ended: nobody need wait for it."""
        with self._lock:
            self._gone.add(rank)
        self._fail(
            lambda since, missing: missing & self._gone,
            "whose process has ended",
        )

    def expire(self):
        """Ends what has waited for too long."""
        self._fail(
            lambda since, missing: time.time() > since + self._timeout,
            f"which did not come within {self._timeout:g} s",
        )

    def _fail(self, hopeless, why):
        failed = []
        with self._lock:
            for key, (since, parts) in list(self._arrived.items()):
                missing = set(range(self._size)) - set(parts)
                if hopeless(since, missing):
                    failed.append((key, parts, missing))
                    del self._arrived[key]
        for key, parts, missing in failed:
            kind = next(iter(parts.values()))[0]
            names = ", ".join(map(str, sorted(missing)))
            self._answer(
                key,
                parts,
                ("error", f"{kind} {key!r} waited for rank {names}, {why}"),
            )

    def _answer(self, key, parts, answer):
        # Rank 0 goes on last: its process may end then.
        for rank in sorted(parts, reverse=True):
            self._deliver(rank, key, answer)

    def _combined(self, parts):
        by_rank = [parts[rank] for rank in range(self._size)]
        if len({(kind, option) for kind, option, _ in by_rank}) > 1:
            return "error", f"ranks disagree: {[b[:2] for b in by_rank]}"
        kind, option, _ = by_rank[0]
        try:
            return "ok", combine(kind, option, [b[2] for b in by_rank])
        except ValueError as error:
            return "error", f"{kind}: {error}"


class Line:
    """A connection that several threads may send on."""

    def __init__(self, connection):
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message):
        with self._lock:
            self._connection.send(message)

    def receive(self):
        return self._connection.recv()


class Server:
    """Rank 0's listening end."""

    def __init__(self, rank, deliver):
        """
        Args:
          rank: ranks.Rank.
          deliver: function of (key, answer) for rank 0 itself.
        """
        self.meeting = Meeting(
            rank.size, _seconds("HCCL_EXEC_TIMEOUT", 120), self._deliver
        )
        self._size = rank.size
        self._own = deliver
        self._lines = {}  # rank: Line, also of those that are gone
        self._listener = multiprocessing.connection.Listener(
            ("127.0.0.1", 0), backlog=128, authkey=rank.job.encode()
        )
        path = port_file(rank.job)
        with open(path + ".new", "w") as file:
            file.write(f"{self._listener.address[1]}")
        os.replace(path + ".new", path)
        atexit.register(_remove, path)
        for loop in (self._accept, self._watch):
            threading.Thread(target=loop, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection = self._listener.accept()
            except (multiprocessing.AuthenticationError, EOFError, OSError):
                continue
            threading.Thread(
                target=self._serve, args=(Line(connection),), daemon=True
            ).start()

    def _watch(self):
        while True:
            time.sleep(0.1)
            self.meeting.expire()

    def _serve(self, line):
        """Takes what one rank sends until its process ends."""
        rank = None
        try:
            greeted, size = line.receive()
            if greeted in self._lines or size != self._size:
                line.send("busy")  # with an earlier run of the job, perhaps
                return
            rank = greeted
            self._lines[rank] = line
            line.send("welcome")
            while True:
                self.meeting.arrive(rank, *line.receive())
        except (EOFError, OSError):
            if rank is not None:
                self.meeting.leave(rank)

    def _deliver(self, rank, key, answer):
        if rank == 0:
            self._own(key, answer)
            return
        try:
            self._lines[rank].send((key, answer))
        except OSError:
            pass  # its own thread notices that it has gone


def _remove(path):
    if os.path.exists(path):
        os.remove(path)


def port_file(job):
    """The file that tells a job's ranks where rank 0 listens."""
    return os.path.join(tempfile.gettempdir(), f"npu_bridge_stub_{job}")


class Exchange:
    """This process's end of the collectives."""

    def __init__(self, rank):
        """Connects; waits HCCL_CONNECT_TIMEOUT seconds (120) for rank 0.

        Args:
          rank: ranks.Rank.
        """
        self._rank = rank
        self._lock = threading.Lock()
        self._calls = {}  # name: how many so far
        self._waiting = {}  # key: (event, answers)
        self._closed = False
        if rank.rank == 0:
            meeting = Server(rank, self._answered).meeting
            self._send = lambda message: meeting.arrive(0, *message)
        else:
            line = self._enter()
            self._send = line.send
            threading.Thread(
                target=self._listen, args=(line,), daemon=True
            ).start()

    def _enter(self):
        deadline = time.time() + _seconds("HCCL_CONNECT_TIMEOUT", 120)
        while True:
            try:
                line = Line(self._connect())
                line.send((self._rank.rank, self._rank.size))
                if line.receive() == "welcome":
                    return line
            except (
                multiprocessing.AuthenticationError,
                EOFError,
                OSError,
                ValueError,
            ):
                pass
            if time.time() > deadline:
                raise RuntimeError(
                    f"rank {self._rank.rank} found no rank 0 of its job"
                )
            time.sleep(0.05)

    def _connect(self):
        with open(port_file(self._rank.job)) as file:
            port = int(file.read())
        return multiprocessing.connection.Client(
            ("127.0.0.1", port), authkey=self._rank.job.encode()
        )

    def _listen(self, line):
        """Hands out answers until rank 0's process ends."""
        try:
            while True:
                self._answered(*line.receive())
        except (EOFError, OSError):
            with self._lock:
                self._closed = True
                waiting = list(self._waiting)
            for key in waiting:
                self._answered(key, _ENDED)

    def _answered(self, key, answer):
        with self._lock:
            event, answers = self._waiting.pop(key, (None, None))
        if event:
            answers.append(answer)
            event.set()

    def run(self, name, kind, option, arrays):
        """One collective; every rank calls it with the same name and kind.

        Raises:
          RuntimeError: a rank is missing or sent something else.
        """
        event, answers = threading.Event(), []
        with self._lock:
            count = self._calls[name] = self._calls.get(name, 0) + 1
            key = f"{name}#{count}"
            closed = self._closed
            self._waiting[key] = (event, answers)
        try:
            if not closed:
                self._send((key, kind, option, arrays))
                event.wait()
        except OSError:
            closed = True
        state, value = _ENDED if closed else answers[0]
        if state == "error":
            raise RuntimeError(f"rank {self._rank.rank}: {value}")
        return value
