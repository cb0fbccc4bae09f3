# SPDX-License-Identifier: Apache-2.0
"""A script in two Horovod processes, as `horovodrun --gloo` starts them.

They are forks (forked.py): importing TensorFlow twice takes longer than most
tests.
"""

from helpers import forked, npu_ranks, tiny


class Ranks:
    """Two processes; what tests use of subprocess.Popen."""

    def __init__(self, command, logs):
        """
        Args:
          command: list of the interpreter, a script and its arguments.
          logs: file of each rank's output; may be one file.
        """
        self._server, variables = _rendezvous(len(logs))
        self.processes = []
        for more, path in zip(variables, logs):
            with open(str(path), "a") as log:
                self.processes.append(
                    forked.Process(
                        command, tiny.environment(npu=False, **more), log, log
                    )
                )

    def poll(self):
        """None while one runs, else the exit code of the first that failed."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def wait(self, timeout=180):
        """The exit code; the first that fails ends the other."""
        try:
            npu_ranks.wait(self.processes, timeout)
        finally:
            self._server.stop()
        return self.poll()


def _rendezvous(size):
    """The server where the ranks meet, and the variables of each."""
    from horovod.runner import gloo_run
    from horovod.runner.common.util import hosts
    from horovod.runner.http import http_server

    server = http_server.RendezvousServer()
    plan = hosts.get_host_assignments(
        hosts.parse_hosts(f"localhost:{size}"), size
    )
    shared = gloo_run.create_run_env_vars("127.0.0.1", ["lo"], server.start())
    server.init(plan)
    variables = [{**shared, **gloo_run.create_slot_env_vars(p)} for p in plan]
    return server, [{k: str(v) for k, v in x.items()} for x in variables]
