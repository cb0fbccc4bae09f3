# SPDX-License-Identifier: Apache-2.0
"""Runs scripts, each in a fork of one process that knows TensorFlow.

The import that takes the longest is paid once for all tests of a process; a
script still runs as a program of its own, from its first line to its exit.
This file is also the program that forks: it reads a JSON object for each
script, or the number of a process, from standard input.
"""

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback

# One request at a time; tests run ranks in threads.
_LOCK = threading.Lock()


class Process:
    """A script that runs; what tests use of subprocess.Popen."""

    def __init__(self, command, environment, output, errors, cwd=None):
        """
        Args:
          command: list of the interpreter, a script and its arguments.
          environment: all its variables.
          output: file for standard output.
          errors: file for standard error, or the same one.
          cwd: its directory, or None for this process's own.
        """
        words = [str(word) for word in command]
        assert words[0] == sys.executable and words[1].endswith(".py"), words
        self.returncode = None
        self.pid = _ask(
            {
                "words": words[1:],
                "environment": environment,
                "output": output.name,
                "errors": errors.name,
                "cwd": str(cwd or os.getcwd()),
            }
        )

    def poll(self):
        """The exit code, or minus a signal's number; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def wait(self, timeout=600):
        """The exit code; kills the script after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        """Sends a signal if the script has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kills the script."""
        self.send_signal(9)


def run(command, environment, *, cwd=None, timeout=180):
    """(exit code, output, errors) of a script; see `Process`."""
    with tempfile.NamedTemporaryFile() as output, (
        tempfile.NamedTemporaryFile()
    ) as errors:
        code = Process(command, environment, output, errors, cwd).wait(timeout)
        texts = [
            stream.read().decode("utf-8", "replace")
            for stream in (output, errors)
        ]
        return (code, *texts)


def _ask(request):
    with _LOCK:
        process = _server()
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


@functools.lru_cache(maxsize=None)
def _server():
    from helpers import tiny

    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
        env=tiny.environment(npu=False),
    )
    atexit.register(process.stdin.close)
    return process


# --- The program ------------------------------------------------------------


def _start(words, environment, output, errors, cwd):
    """Forks; gives the number of the process that runs the script."""
    child = os.fork()
    if not child:
        for number, path, mode in (
            (0, os.devnull, os.O_RDONLY),
            (1, output, os.O_WRONLY | os.O_APPEND),
            (2, errors, os.O_WRONLY | os.O_APPEND),
        ):
            os.dup2(os.open(path, mode), number)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        code = _run_script(*words)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return child


def _run_script(script, *arguments):
    """Runs a script in this process; gives its exit code."""
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    sys.path[1:1] = filter(None, [os.environ.get("PYTHONPATH")])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _status(child):
    """The exit code, or minus a signal's number; None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        return None
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def main():
    """Answers requests until standard input ends."""
    import tensorflow.compat.v1 as tf

    # TensorFlow loads it where it is first named.
    tf.estimator.Estimator  # noqa: B018
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        is_script = isinstance(request, dict)
        answer = _start(**request) if is_script else _status(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
